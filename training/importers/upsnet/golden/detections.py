"""The two detection branches and the panoptic map for `dump`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.panoptic_fusion.reference import (
    bounded_logits,
    mask_terms,
    merge,
    panoptic_labels,
    prune,
    segment_term,
)
from training.importers.arrays import near_tie
from training.importers.upsnet.golden.inputs import Inputs
from training.inference import select_instances
from training.model.heads import MASK_POOL
from training.model.upsnet import ScoredProposals, UPSNet

AP_MASKS, AP_BITS = 20, 6  # of how many detections the masks are written, in full and pasted
UNKNOWN = 255


def ap_branch(model: UPSNet, pyramid: list[Tensor], scored: ScoredProposals, inputs: Inputs) -> dict[str, Tensor]:
    """Detections as box and mask AP want them: NMS within each class; ordered by class, then by score."""
    found = select_instances(model, scored)
    labels = found.labels[0, : int(found.counts)]
    order = labels.argsort(stable=True)
    arrays = {
        "det_scores": found.scores[0, order],
        "det_boxes": found.boxes[0, order],
        "det_cls": (labels[order] + 1).to(torch.int16),
    }
    boxes, labels = inputs.stage("det_boxes", arrays["det_boxes"]), inputs.stage("det_cls", arrays["det_cls"])
    masks = _masks(model, pyramid, boxes, labels).sigmoid()
    original = [round(side / inputs.scale) for side in (inputs.height, inputs.width)]
    pasted = [paste(mask, box / inputs.scale, *original) for mask, box in zip(masks, boxes, strict=True)]
    bits = [np.packbits(mask.numpy().ravel()) for mask in pasted[:AP_BITS]]
    return arrays | {
        "det_mask_prob": masks[:AP_MASKS],
        "det_mask_area": torch.tensor([int(mask.sum()) for mask in pasted], dtype=torch.int32),
        f"det_mask_bits_first{AP_BITS}": torch.from_numpy(np.array(bits, np.uint8)),
    }


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """bool [height, width]: a mask of probabilities [M, M] with a border of one cell, in the box that grows with it."""
    size = mask.shape[-1]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * ((size + 2) / size)
    grown = torch.cat([centre - half, centre + half])
    return mask_terms(F.pad(mask, (1, 1, 1, 1))[None], grown[None], height, width)[0] > 0.5


def panoptic_branch(
    model: UPSNet, pyramid: list[Tensor], semantic: Tensor, scored: ScoredProposals, inputs: Inputs
) -> dict[str, Tensor]:
    """The panoptic branch: class-agnostic detections, pruning, the logits [stuff | instances | unknown], the rules."""
    found = model.select(scored)
    count = int(found.counts)
    arrays = {
        "pan_det_scores": found.scores[0, :count],
        "pan_det_boxes": found.boxes[0, :count],
        "pan_det_cls": (found.labels[0, :count] + 1).to(torch.int16),
    }
    boxes, labels = (inputs.stage(f"pan_det_{name}", arrays[f"pan_det_{name}"]) for name in ("boxes", "cls"))
    arrays["pan_det_mask_logits"] = _masks(model, pyramid, boxes, labels)
    masks = bounded_logits(inputs.stage("pan_det_mask_logits", arrays["pan_det_mask_logits"]))

    num_stuff, things = model.num_stuff, labels.long() - 1
    full = F.interpolate(semantic[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    height, width = full.shape[1:]
    terms = mask_terms(masks, boxes, height, width)
    inside = terms > 0
    inside[:, inputs.height :] = False
    inside[:, :, inputs.width :] = False
    keep = prune(inside, things, model.config.panoptic.mask_overlap)
    arrays["pan_keep"] = keep.to(torch.int16)
    keep = inputs.stage("pan_keep", keep)
    terms, boxes, things = terms[keep], boxes[keep], things[keep]
    segments = torch.zeros_like(terms)
    for row, (thing, box) in enumerate(zip(things, boxes, strict=True)):
        segments[row] = segment_term(full[num_stuff + thing], box)
    highest = segments.amax(0) if len(segments) else 0.0
    unknown = full[num_stuff:].amax(0) - highest
    logits = torch.cat([full[:num_stuff], segments + terms, unknown[None]])
    labelled = panoptic_labels(full, terms, boxes, things, num_stuff)
    return arrays | {
        "pan_mask_energy": terms[:, 4::8, 4::8],
        "pan_mask_energy_sum": terms.double().sum((1, 2)),
        "pan_mask_energy_area": (terms != 0).sum((1, 2)).to(torch.int32),
        "pan_seg_inst_sum": segments.double().sum((1, 2)),
        "pan_seg_inst_area": (segments != 0).sum((1, 2)).to(torch.int32),
        "pan_void_logit": unknown[4::8, 4::8],
        "pan_max_logit": logits.amax(0)[4::8, 4::8],
        "pan_near_tie": near_tie(logits),
        "pan_argmax_net": coded(labelled, num_stuff + len(keep)),
        **_maps(labelled, full.argmax(0), things, model, inputs),
    }


def _maps(labels: Tensor, semantic: Tensor, things: Tensor, model: UPSNet, inputs: Inputs) -> dict[str, Tensor]:
    """The maps without padding, at the original size (nearest) and at the network's, before and after the rules."""
    height, width, scale = inputs.height, inputs.width, inputs.scale
    labels, semantic = labels[:height, :width], semantic[:height, :width]
    rows, columns = (_nearest(side, scale) for side in (height, width))
    large, semantic_large = (each[rows[:, None], columns] for each in (labels, semantic))
    limit = torch.tensor(model.config.panoptic.stuff_area_limit)
    before = coded(large, model.num_stuff + len(things))
    arrays = {"pan_orig_before": before, "sem_orig": semantic_large.to(torch.uint8)}
    for name, before, votes, smallest in (
        ("pan_orig_after", large, semantic_large, limit),
        ("pan_net_after", labels, semantic, limit * scale * scale),
    ):
        classes = model.num_stuff + model.num_things
        after = merge(before, votes, len(things), model.num_stuff, classes, smallest)
        arrays[name] = two_channels(before, after, things, model.num_stuff)
    return arrays


def _masks(model: UPSNet, pyramid: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """Mask logits [n, 28, 28] of boxes [n, 4] and their detection classes, which begin at 1."""
    return model.mask_head(model.roi_features(pyramid, boxes[None], MASK_POOL), labels.long() - 1)


def _nearest(side: int, scale: float) -> Tensor:
    """Source index of every pixel of a line of `side` pixels that is resized by 1 / scale."""
    return (torch.arange(round(side / scale)) * scale).long().clamp(max=side - 1)


def coded(labels: Tensor, unknown: int) -> Tensor:
    """uint8: stuff and instances as they are, the label `unknown` as 255."""
    return torch.where(labels == unknown, UNKNOWN, labels).to(torch.uint8)


def two_channels(before: Tensor, after: Tensor, things: Tensor, num_stuff: int) -> Tensor:
    """uint8 [H, W, 2] of the labels after the rules: the semantic class or 255; an instance's number or 0.

    Instances are numbered from 1, those alone that have a pixel before the rules.
    """
    unknown = num_stuff + len(things)
    classes = torch.cat([torch.arange(num_stuff), num_stuff + things, torch.tensor([UNKNOWN])])
    present = torch.bincount(before.flatten(), minlength=unknown + 1) > 0
    present[:num_stuff] = present[unknown] = False
    numbers = present.cumsum(0) * present
    return torch.stack([classes[after], numbers[after]], dim=-1).to(torch.uint8)
