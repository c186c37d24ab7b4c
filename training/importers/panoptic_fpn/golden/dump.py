"""Every intermediate array of one photo, to compare an imported Panoptic FPN with detectron2's.

Names, shapes and subsampling are those of the project's golden arrays: one photo, no batch axis; [channel, y, x]; boxes
x1, y1, x2, y2 with exclusive corners. Channels and classes are in detectron2's order: things as one before the stuff,
the background after the things and without deltas and masks. The network's parts and the operators' definitions compute
everything; here it is only put into that form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins_cuda.best_anchors.reference import rows_of
from training.importers.arrays import Arrays, near_tie
from training.importers.panoptic_fpn.golden.detections import box_head, detections, given_rois
from training.importers.panoptic_fpn.golden.inputs import Inputs
from training.importers.panoptic_fpn.golden.merge import Segment, at_network_size, at_photo_size, differing_pixels
from training.model import boxes as B
from training.model.chains import ChainsHead
from training.model.rpn import STRIDES, RpnOutput
from training.model.upsnet import PYRAMID_LEVELS, UPSNet

DECODED = 37  # of so many decoded anchors one is written
STEPS = {  # between the channels, rows and columns that are written
    "net_input_sample": (1, 9, 11),
    "stem": (8, 4, 4),
    **{"res2": (16, 4, 4), "res3": (32, 2, 2), "res4": (32, 1, 1), "res5": (32, 1, 1)},
    **{"p2": (16, 4, 4), "p3": (16, 2, 2), "p4": (8, 1, 1), "p5": (4, 1, 1), "p6": (1, 1, 1)},
    **dict.fromkeys(("sem_p2", "sem_p3", "sem_p4", "sem_p5", "sem_sum"), (8, 4, 4)),
}


class Dump(NamedTuple):
    arrays: Arrays
    segments: list[Segment]  # of the panoptic map, as detectron2 lists them
    differing: int  # pixels of the photo where this project's merge, at the network's size, says something else


@torch.no_grad()
def dump(model: UPSNet, image: Inputs, full: bool = False) -> Dump:
    """All arrays of a network in eval mode. `full`: those that only differ from whole ones by steps are whole."""
    arrays, pyramid = _features(model, image)
    if not full:
        arrays |= {name: arrays[name][::c, ::y, ::x] for name, (c, y, x) in STEPS.items()}
    semantic, more = _semantic(model, pyramid, image)
    arrays |= more
    proposals, more = _proposals(model, pyramid, image)
    arrays |= more
    scored, more = box_head(model, pyramid, proposals, image)
    arrays |= more | given_rois(model, pyramid, proposals, image)
    found, more = detections(model, pyramid, scored, image)
    arrays |= more
    theirs = at_photo_size(model, semantic, found, image)
    ours = at_network_size(model, pyramid, semantic, scored, image)
    arrays |= theirs.arrays
    whole = {name: value.contiguous().numpy() for name, value in arrays.items()}
    return Dump(whole, theirs.segments, differing_pixels(theirs, ours))


def _features(model: UPSNet, image: Inputs) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The input and the maps of the backbone and the pyramid, whole; and the pyramid."""
    height, width = image.image.size
    batch, sizes = torch.from_numpy(image.batch.images), image.sizes
    x = model.normalize(batch, sizes)
    network = model.backbone.network
    assert isinstance(network, nn.Module)
    first = ("conv1", "bn1", "act1", "maxpool")
    stem = nn.Sequential(*(network.get_submodule(name) for name in first))(x)
    levels = model.backbone(x)
    pyramid = model.fpn(levels, sizes)
    names = [*(f"res{i}" for i in range(2, 6)), *(f"p{i}" for i in range(2, 7))]
    return {
        "net_uint8": batch[0, :height, :width].flip(2),
        "net_input_sample": x[0].flip(0),
        "stem": stem[0],
        **{name: level[0] for name, level in zip(names, [*levels, *pyramid], strict=True)},
        **_semantic_features(model, pyramid, sizes),
    }, pyramid


def _semantic_features(model: UPSNet, pyramid: list[Tensor], sizes: Tensor) -> dict[str, Tensor]:
    head = model.semantic_head
    assert isinstance(head, ChainsHead)  # Family.check
    outputs = head.features(pyramid[:PYRAMID_LEVELS], sizes)
    arrays = {f"sem_p{level + 2}": x[0] for level, x in enumerate(outputs)}
    return arrays | {"sem_sum": torch.stack([x[0] for x in outputs]).sum(0)}


def _semantic(model: UPSNet, pyramid: list[Tensor], image: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The semantic logits at 1/4 that the merge starts from, [1 + S, h, w] in detectron2's order."""
    own = model.semantic_head(pyramid[:PYRAMID_LEVELS], image.sizes)[0].roll(1, 0)
    large = F.interpolate(own[None], scale_factor=4.0, mode="bilinear", align_corners=False)[0]
    whole = image.given.get("sem_logits", own).shape == own.shape  # of other networks there are samples
    return image.stage("sem_logits", own) if whole else own, {
        "sem_logits": own,
        "sem_full_sample": large[::8, 3::16, 5::16],
        "sem_net_argmax": large.argmax(0).to(torch.uint8),
        "sem_net_near_tie": near_tie(large),
    }


def _proposals(model: UPSNet, pyramid: list[Tensor], image: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The proposals [N, 4] that the next stages start from."""
    own = model.rpn(pyramid)
    arrays: dict[str, Tensor] = {}
    maps = []
    for level, (output, stride) in enumerate(zip(own.maps, STRIDES, strict=True)):
        logits, deltas = output[0].tensor_split([output.shape[1] // 5])
        name = f"p{level + 2}"
        arrays |= {f"rpn_logits_{name}": logits, f"rpn_deltas_{name}": deltas}
        logits = image.stage(f"rpn_logits_{name}", logits, len(logits))
        deltas = image.stage(f"rpn_deltas_{name}", deltas, len(deltas))
        maps.append(torch.cat([logits, deltas])[None])
        anchors = B.grid_anchors(model.rpn.base_anchors[level], logits.shape[1], logits.shape[2], stride)
        decoded = model.conventions.decode(rows_of(maps[-1])[1][0], anchors, B.RPN_WEIGHTS)
        arrays |= {f"anchors_first12_{name}": anchors[:12], f"anchors_last3_{name}": anchors[-3:]}
        arrays[f"rpn_decoded_{name}_sample"] = decoded[::DECODED]
    boxes, scores = model.rpn.ranked(RpnOutput(maps), image.sizes, model.config.rpn.test_top_n)
    valid = scores > -torch.inf
    arrays |= {"proposal_boxes": boxes[valid], "proposal_logits": scores[valid]}
    return image.stage("proposal_boxes", boxes[valid]), arrays
