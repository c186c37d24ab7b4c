"""Bilinear sampling as weighted embedding bags: how deform_conv and roi_align_fpn train on a CPU.

torchvision's backward passes of these operators are scalar loops on one core (they took two thirds of a training
step). A bag sums weighted rows of a table, vectorised over the channels and over the cores in both directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_table(feature: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C], one row a pixel."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def corners(y: Tensor, x: Tensor, height: Tensor | int, width: Tensor | int) -> tuple[Tensor, Tensor]:
    """Rows (y * width + x) and weights, each [..., 4], of the pixels around the points (y, x); 0 outside the map.

    Differentiable in y and x through the weights. height, width: of the map, also one for each point.
    """
    top, left = y.detach().floor(), x.detach().floor()
    rows, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top.long() + down, left.long() + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            vertical = (y - top) if down else (1 - y + top)
            horizontal = (x - left) if right else (1 - x + left)
            rows.append((row * width + column) * inside)
            weights.append(vertical * horizontal * inside)
    return torch.stack(rows, dim=-1), torch.stack(weights, dim=-1)


def bag_sum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """[n, C]: for each of n bags the sum of weights [n, k] times the rows [n, k] of `table` [m, C]."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
