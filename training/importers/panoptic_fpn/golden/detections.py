"""What the box and the mask head say of proposals, of given RoIs and of detections, for `dump`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.roi_align_fpn.reference import assign_levels
from training.importers.panoptic_fpn.golden.inputs import Inputs, check_below
from training.inference import select_instances
from training.model import boxes as B
from training.model.heads import BOX_POOL, MASK_POOL
from training.model.upsnet import ScoredProposals, UPSNet

CANDIDATE = 0.04  # least probability of the listed (proposal, class) pairs
DECODED_CLASSES, MASK_CLASSES = 8, 16  # steps between the classes of given RoIs that are written


class Found(NamedTuple):
    """n detections in descending score, network pixels."""

    boxes: Tensor  # n x 4
    scores: Tensor  # n
    classes: Tensor  # n, int64, thing index
    masks: Tensor  # n x 28 x 28, logits


def box_head(
    model: UPSNet, pyramid: list[Tensor], proposals: Tensor, image: Inputs
) -> tuple[ScoredProposals, dict[str, Tensor]]:
    """The scored proposals that the detections start from; given candidates stand for all of them."""
    logits, deltas = model.box_head(model.roi_features(pyramid, proposals[None], BOX_POOL))
    probabilities = logits.softmax(dim=1)
    row, label = (probabilities[:, 1:] > CANDIDATE).nonzero().unbind(1)
    own = deltas[row, 1 + label]
    arrays = {
        "cls_logits": logits.roll(-1, 1),
        "cand_index": torch.stack([row, label], dim=1).to(torch.int16),
        "cand_prob": probabilities[row, 1 + label],
        "cand_delta": own,
        "cand_box": model.conventions.decode(own, proposals[row], B.BOX_WEIGHTS),
    }
    if "cand_index" in image.given:
        index = image.stage("cand_index", arrays["cand_index"]).long()
        check_below("cand_index", index, len(proposals), model.num_things)
        row, label = index.unbind(1)
        probabilities, deltas = torch.zeros_like(probabilities), torch.zeros_like(deltas)
        probabilities[row, 1 + label] = image.stage("cand_prob", arrays["cand_prob"], len(row))
        deltas[row, 1 + label] = image.stage("cand_delta", arrays["cand_delta"], len(row))
    valid = torch.ones(1, len(proposals), dtype=torch.bool)
    return ScoredProposals(proposals[None], valid, probabilities, deltas, image.sizes), arrays


def given_rois(model: UPSNet, pyramid: list[Tensor], proposals: Tensor, image: Inputs) -> dict[str, Tensor]:
    """Both heads on RoIs that are given; nothing without them."""
    if "roi_boxes" not in image.given:
        return {}
    own, rois = model.conventions, image.stage("roi_boxes", proposals)
    pooled = model.roi_features(pyramid, rois[None], BOX_POOL)
    logits, deltas = model.box_head(pooled)
    hidden = F.relu(model.box_head.fc7(F.relu(model.box_head.fc6(pooled.flatten(1)))))
    decoded = own.decode(deltas[:, 1:], rois[:, None], B.BOX_WEIGHTS)
    levels = assign_levels(rois, inclusive=own.inclusive, rounded=own.rounded_levels)
    arrays = {
        "roi_boxes": rois,
        "roi_level": (2 + levels).to(torch.int8),
        "roi_pool7": pooled[:, ::32],
        "roi_feat": hidden[:, ::16],
        "roi_cls_logits": logits.roll(-1, 1),
        "roi_box_deltas": deltas[:, 1:].flatten(1),
        "roi_decoded": decoded[:, ::DECODED_CLASSES],
    }
    if "mask_roi_index" in image.given:
        index = image.stage("mask_roi_index", torch.zeros(0, dtype=torch.int16)).long()
        check_below("mask_roi_index", index, len(rois))
        pooled = model.roi_features(pyramid, rois[index][None], MASK_POOL)
        labels = torch.arange(0, model.num_things, MASK_CLASSES)
        masks = model.mask_head(pooled.repeat_interleave(len(labels), 0), labels.repeat(len(pooled)))
        arrays |= {"mask_roi_index": index.to(torch.int16), "mask_roi_pool14": pooled[:, ::32]}
        arrays["mask_roi_logits"] = masks.unflatten(0, (-1, len(labels)))
    return arrays


def detections(
    model: UPSNet, pyramid: list[Tensor], scored: ScoredProposals, image: Inputs
) -> tuple[Found, dict[str, Tensor]]:
    """The detections that the merge starts from: the best 100 of all proposals and classes, NMS within each class."""
    found = select_instances(model, scored)
    count = int(found.counts)
    boxes, scores, labels = (each[0, :count] for each in found[:3])
    arrays = {
        "det_boxes": boxes,
        "det_scores": scores,
        "det_classes": labels.to(torch.int16),
        "det_rows": _rows(scored, boxes, scores, labels, model).to(torch.int16),
    }
    boxes = image.stage("det_boxes", boxes)
    rows = len(boxes)
    scores, labels = image.stage("det_scores", scores, rows), image.stage("det_classes", labels, rows)
    check_below("det_classes", labels, model.num_things)
    masks = model.mask_head(model.roi_features(pyramid, boxes[None], MASK_POOL), labels)
    arrays["det_mask_logits"] = masks
    return Found(boxes, scores, labels, image.stage("det_mask_logits", masks, rows)), arrays


def _rows(scored: ScoredProposals, boxes: Tensor, scores: Tensor, labels: Tensor, model: UPSNet) -> Tensor:
    """The proposal [n] that each detection was made of."""
    own = scored.deltas[:, 1 + labels].transpose(0, 1)  # n x R x 4
    decoded = model.conventions.clip(model.conventions.decode(own, scored.proposals, B.BOX_WEIGHTS), scored.sizes)
    equal = (decoded == boxes[:, None]).all(2) & (scores[:, None] == scored.probabilities[:, 1 + labels].T)
    return equal.int().argmax(1)
