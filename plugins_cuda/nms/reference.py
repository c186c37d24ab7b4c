"""Greedy non-maximum suppression with outputs of a fixed size, in plain torchvision: the definition."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


@torch.no_grad()
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    classes: Tensor | None = None,
    inclusive: bool = False,
) -> tuple[Tensor, Tensor]:
    """Greedy NMS of every row of the batch on its own (fold levels into the batch).

    boxes: [B, N, 4], x1 y1 x2 y2 with exclusive x2, y2; inclusive=True: x2, y2 lie inside the box, whose widths and
    heights (and the intersections') then have the legacy + 1. Computed in float32.
    scores: [B, N]. Candidates have score > score_threshold (NaN never has). A box is suppressed when its IoU with a
    kept one is > iou_threshold. Equal scores go by the lower index.
    classes: int64 [B, N], any numbers: only boxes of the same class suppress each other. None: all do.

    Returns indices int64 [B, max_output] in descending score, padded with 0, and their count int32 [B]: index for index
    what torchvision's nms gives (with classes: its batched_nms done class by class, which does not round coordinates).
    Boxes without area, inverted boxes and boxes with NaN or infinite coordinates overlap nothing.
    The thresholds are rounded to float32 first, as every executor does. torchvision on a CPU is the exception: it
    compares with the double. An IoU that equals a threshold like 0.1, which no float32 is, may go another way there.
    ValueError for shapes, types and numbers outside of this. No gradient.
    """
    boxes, scores = boxes.float(), scores.float()
    batch = boxes.shape[0]
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    score_threshold = torch.tensor(score_threshold, dtype=torch.float32).item()
    indices = torch.zeros(batch, max_output, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=boxes.device)
    suppress = _legacy_nms if inclusive else torchvision.ops.nms
    for image in range(batch):
        candidates = torch.nonzero(scores[image] > score_threshold).squeeze(1)
        order = scores[image, candidates].argsort(descending=True, stable=True)
        candidates = candidates[order]
        kept = torch.zeros(len(candidates), dtype=torch.bool, device=boxes.device)
        groups = [torch.arange(len(candidates), device=boxes.device)]
        if classes is not None:  # only boxes of one class compete
            labels = classes[image, candidates]
            groups = [torch.nonzero(labels == label).squeeze(1) for label in labels.unique()]
        for members in groups:
            chosen = candidates[members]
            kept[members[suppress(boxes[image, chosen], scores[image, chosen], iou_threshold)]] = True
        best = candidates[kept][:max_output]
        indices[image, : len(best)] = best
        counts[image] = len(best)
    return indices, counts


def _legacy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's nms of boxes whose x2 and y2 lie inside, in descending score."""
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].unbind(1)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if not alive[i]:
            continue
        width = (torch.minimum(x2, x2[i]) - torch.maximum(x1, x1[i]) + 1).clamp(min=0)
        height = (torch.minimum(y2, y2[i]) - torch.maximum(y1, y1[i]) + 1).clamp(min=0)
        shared = width * height
        alive[i + 1 :] &= ~(shared / (areas[i] + areas - shared) > iou_threshold)[i + 1 :]
    return order[alive]
