"""Greedy non-maximum suppression with outputs of a fixed size, in plain torchvision: the definition."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


@torch.no_grad()
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """See `plugins_cuda.nms`. The thresholds are rounded to float32 first, as every executor does."""
    batch = boxes.shape[0]
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    score_threshold = torch.tensor(score_threshold, dtype=torch.float32).item()
    indices = torch.zeros(batch, max_output, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=boxes.device)
    for image in range(batch):
        candidates = torch.nonzero(scores[image] > score_threshold).squeeze(1)
        kept = torchvision.ops.nms(boxes[image, candidates], scores[image, candidates], iou_threshold)[:max_output]
        indices[image, : len(kept)] = candidates[kept]
        counts[image] = len(kept)
    return indices, counts
