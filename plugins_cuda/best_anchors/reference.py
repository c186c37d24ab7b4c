"""The best anchors of each level in plain PyTorch: the definition that every other front is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_cuda.boxes import clip, decode, gather_rows, grid_anchors

FINEST_STRIDE = 4


def best_anchors(
    maps: Sequence[Tensor], base_anchors: Tensor, sizes: Tensor, top_n: int, inclusive: bool = False
) -> tuple[Tensor, Tensor]:
    """Of each level the `top_n` anchors with the highest logits, as boxes (Ren et al., NIPS 2015).

    maps: five of [B, 5A, H/s, W/s] at strides 4 to 64, taken as float32: the logits of a cell's A anchors, then the
        deltas (x, y, width, height) of the first anchor, of the second, ...
    base_anchors: [5, A, 4], taken as float32, the anchors of each level's first cell, x1 y1 x2 y2 in network pixels.
    sizes: int32 [B, 2], height and width of each image; boxes are clipped to it.
    inclusive: x2 and y2 are the last pixels inside a box.
    Returns boxes float32 [B, 5, top_n, 4] and their logits [B, 5, top_n], descending; equal ones in the order of their
    anchors (y, x, anchor). A logit that is NaN counts as -inf, and an anchor of -inf is none: where a level has fewer
    than top_n others, boxes of zeros with -inf follow. ValueError when the inputs do not fit together. No gradient.
    """
    levels = [
        _best(level.float(), base.float(), sizes, FINEST_STRIDE << index, top_n, inclusive)
        for index, (level, base) in enumerate(zip(maps, base_anchors, strict=True))
    ]
    boxes, scores = (torch.stack(each, dim=1) for each in zip(*levels, strict=True))
    return boxes, scores


def rows_of(level: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, N] and deltas [B, N, 4] of a map [B, 5A, h, w], anchors in the order (y, x, anchor)."""
    batch, channels = level.shape[:2]
    logits, deltas = level.permute(0, 2, 3, 1).split([channels // 5, channels // 5 * 4], dim=3)
    return logits.reshape(batch, -1), deltas.reshape(batch, -1, 4)


def _best(
    level: Tensor, base: Tensor, sizes: Tensor, stride: int, top_n: int, inclusive: bool
) -> tuple[Tensor, Tensor]:
    height, width = level.shape[2:]
    logits, deltas = rows_of(level)
    logits = torch.where(logits.isnan(), -torch.inf, logits)
    scores, order = torch.sort(F.pad(logits, (0, top_n), value=-torch.inf), dim=1, descending=True, stable=True)
    scores, order = scores[:, :top_n], order[:, :top_n]
    anchors = F.pad(grid_anchors(base, height, width, stride), (0, 0, 0, top_n))[order]
    decoded = decode(gather_rows(F.pad(deltas, (0, 0, 0, top_n)), order), anchors, (1.0, 1.0), inclusive)
    boxes = clip(decoded, sizes, inclusive)
    return torch.where(scores.unsqueeze(2) > -torch.inf, boxes, 0.0), scores
