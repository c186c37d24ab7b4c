"""Every intermediate array of one image, to compare an imported network with its original.

Names, shapes and subsampling are those of the project's golden arrays: one image, no batch axis; [channel, y, x]; boxes
x1, y1, x2, y2 with inclusive corners in network pixels; detection classes from 1, 0 the background. The network's parts
and the operators' definitions compute everything; here it is only put into that form.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.roi_align_fpn.reference import assign_levels
from training.importers.arrays import Arrays, near_tie
from training.importers.upsnet.golden.detections import ap_branch, panoptic_branch
from training.importers.upsnet.golden.inputs import Inputs
from training.model import boxes as B
from training.model.heads import BOX_POOL, MASK_POOL, SemanticHead
from training.model.rpn import STRIDES, RpnOutput
from training.model.upsnet import PYRAMID_LEVELS, ScoredProposals, UPSNet

CANDIDATE = 0.04  # least probability of the listed (proposal, class) pairs
MANY_CLASSES = 20  # above it decoded boxes are written for every fourth class
FEATURE_SAMPLES = {
    **{"C2": (16, 4, 4), "C3": (16, 2, 2), "C4": (32, 1, 1), "C5": (32, 1, 1)},
    **{"P2": (16, 2, 2), "P3": (16, 1, 1), "P4": (8, 1, 1), "P5": (4, 1, 1), "P6": (1, 1, 1)},
}  # steps between the channels, rows and columns that are written


@torch.no_grad()
def dump(model: UPSNet, inputs: Inputs, full: bool = False) -> Arrays:
    """All arrays of a network in eval mode. `full`: see `upsnet golden --help`."""
    levels, pyramid = inputs.pyramid(model)
    maps = zip(FEATURE_SAMPLES.items(), [*levels, *pyramid], strict=True)
    arrays = {name: feature[0, ::channel, ::y, ::x] for (name, (channel, y, x)), feature in maps}
    proposals, more = _proposals(model, pyramid, inputs)
    arrays |= more
    probabilities, deltas, more = _box_head(model, pyramid, proposals, inputs, full)
    arrays |= more
    if "roi_boxes" in inputs.given:
        arrays |= _hand_made_rois(model, pyramid, inputs)
    semantic, more = _semantic(model, pyramid, inputs, full)
    arrays |= more
    valid = torch.ones(1, len(proposals), dtype=torch.bool)
    scored = ScoredProposals(proposals[None], valid, probabilities, deltas, inputs.sizes)
    arrays |= ap_branch(model, pyramid, scored, inputs)
    arrays |= panoptic_branch(model, pyramid, semantic, scored, inputs)
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in arrays.items()}


def _proposals(model: UPSNet, pyramid: list[Tensor], inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The proposals [N, 4] that the next stages start from."""
    own = model.rpn(pyramid)
    arrays: dict[str, Tensor] = {}
    maps = []
    for level, (feature, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
        height, width = feature.shape[2:]
        name = f"P{level + 2}"
        score, delta = own.maps[level][0].tensor_split([own.maps[level].shape[1] // 5])
        arrays |= {f"rpn_cls_logit_{name}": score, f"rpn_bbox_delta_{name}": delta}
        score, delta = inputs.stage(f"rpn_cls_logit_{name}", score), inputs.stage(f"rpn_bbox_delta_{name}", delta)
        maps.append(torch.cat([score, delta])[None])
        base = model.rpn.base_anchors[level].double()
        anchors = B.grid_anchors(base, height, width, stride)
        arrays |= {f"anchor_base_{name}": base, f"anchor_first12_{name}": anchors[:12]}
        arrays[f"anchor_last3_{name}"] = anchors[-3:]
    boxes, scores = model.rpn.ranked(RpnOutput(maps), inputs.sizes, model.config.rpn.test_top_n)
    valid = scores > -torch.inf
    arrays |= {"proposal_boxes": boxes[valid], "proposal_scores": scores[valid].sigmoid()}
    return inputs.stage("proposal_boxes", boxes[valid]), arrays


def _box_head(
    model: UPSNet, pyramid: list[Tensor], proposals: Tensor, inputs: Inputs, full: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Probabilities [N, 1 + T] and deltas [N, 1 + T, 4] that the detections start from."""
    logits, deltas = model.box_head(model.roi_features(pyramid, proposals[None], BOX_POOL))
    probabilities = logits.softmax(dim=1)
    listed = probabilities > CANDIDATE
    listed[:, 0] = False
    index = listed.nonzero()
    arrays = {"cand_index": index.to(torch.int16), "cand_prob": probabilities[listed], "cand_delta": deltas[listed]}
    if full:
        arrays |= {"all_cls_prob": probabilities, "all_cls_score": logits, "all_bbox_pred": deltas.flatten(1)}
    if "cand_index" in inputs.given:
        row, label = torch.from_numpy(inputs.given["cand_index"]).long().unbind(1)
        probabilities, deltas = torch.zeros_like(probabilities), torch.zeros_like(deltas)
        probabilities[row, label] = inputs.stage("cand_prob", arrays["cand_prob"])
        deltas[row, label] = inputs.stage("cand_delta", arrays["cand_delta"])
    return probabilities, deltas, arrays


def _hand_made_rois(model: UPSNet, pyramid: list[Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Both heads on RoIs that are given."""
    rois = torch.from_numpy(inputs.given["roi_boxes"])
    pooled = model.roi_features(pyramid, rois[None], BOX_POOL)
    logits, deltas = model.box_head(pooled)
    decoded = model.conventions.decode(deltas, rois[:, None], B.BOX_WEIGHTS)
    clipped = model.conventions.clip(decoded.flatten(0, 1)[None], inputs.sizes)
    step = 4 if logits.shape[1] > MANY_CLASSES else 1
    arrays = {
        "roi_boxes": rois,
        "roi_level": (2 + assign_levels(rois, inclusive=model.conventions.inclusive)).to(torch.int8),
        "roi_pool7": pooled[:, ::32],
        "roi_cls_score": logits,
        "roi_bbox_pred": deltas.flatten(1),
        "roi_decoded": decoded[:, ::step],
        "roi_decoded_clipped": clipped[0].reshape(decoded.shape)[:, ::step],
    }
    if "mask_roi_index" in inputs.given and "mask_roi_class" in inputs.given:
        index, label = (torch.from_numpy(inputs.given[f"mask_roi_{name}"]) for name in ("index", "class"))
        pooled = model.roi_features(pyramid, rois[index.long()][None], MASK_POOL)
        arrays |= {"mask_roi_index": index, "mask_roi_class": label, "mask_pool14": pooled[:, ::32]}
        arrays["mask_logits"] = model.mask_head(pooled, label.long() - 1)
    return arrays


def _semantic(model: UPSNet, pyramid: list[Tensor], inputs: Inputs, full: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The semantic logits at 1/4 that the panoptic stage starts from, [S + T, h, w]."""
    head = model.semantic_head
    assert isinstance(head, SemanticHead)  # the original has no other
    first, *others = head.features(pyramid[:PYRAMID_LEVELS], inputs.sizes)
    grown = [F.interpolate(x, size=first.shape[2:], mode="bilinear", align_corners=False) for x in others]
    features = torch.cat([first, *grown], dim=1)
    score = head.score(features)
    large = F.interpolate(score, scale_factor=4.0, mode="bilinear", align_corners=False)[0]
    arrays = {
        "fcn_feat": features[0, ::16, ::4, ::4],
        "fcn_score": score[0] if full else score[0, ::4, ::2, ::2],
        "sem_argmax": large.argmax(0).to(torch.uint8),
        "sem_near_tie": near_tie(large),
        "sem_full_sample": large[::8, 3::16, 5::16],
    }
    whole = inputs.given.get("fcn_score", np.zeros(0)).shape == score[0].shape
    return (inputs.stage("fcn_score", score[0]) if whole else score[0]), arrays
