"""Bilinear sampling as weighted embedding bags: how deform_conv and roi_align_fpn train on a CPU.

torchvision's backward passes of these operators are scalar loops on one core (they took two thirds of a training
step). A bag sums weighted rows of a table, vectorised over the channels and over the cores in both directions.

Row 0 of a table is zeros. Whatever lies outside of a map has this row: a pixel of the map with weight 0 would not do,
as 0 times infinity is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_table(features: Sequence[Tensor]) -> Tensor:
    """Maps [B, C, H, W] -> [B * (1 + all H * W), C]. Of every image a row of zeros, then one row a pixel, map after
    map."""
    pixels = [feature.flatten(2).transpose(1, 2) for feature in features]
    return torch.cat([pixels[0].new_zeros(len(pixels[0]), 1, pixels[0].shape[2]), *pixels], dim=1).flatten(0, 1)


def corners(
    y: Tensor, x: Tensor, height: Tensor | int, width: Tensor | int, first: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Rows (first + y * width + x) and weights, each [..., 4], of the pixels around the points (y, x); 0 outside the
    map.

    y, x: finite. Differentiable in them through the weights; their shapes are broadcast.
    height, width, first: of the map, and the row of its first pixel; also one for each point.
    """
    rows, weights = [], []
    for row, vertical, on_map in _sides(y, height):
        start = first + row * width
        for column, horizontal, inside in _sides(x, width):
            rows.append((start + column) * (on_map & inside))
            weights.append(vertical * horizontal)
    return torch.stack(rows, dim=-1), torch.stack(weights, dim=-1)


def _sides(at: Tensor, length: Tensor | int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Along one axis, the pixels before and after a coordinate: index, weight (0 outside the map), and whether it is
    on the map."""
    low = at.detach().floor()
    after = at - low
    for index, weight in ((low.long(), 1 - after), (low.long() + 1, after)):
        inside = (index >= 0) & (index < length)
        yield index, weight * inside, inside


def bag_sum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """[n, C]: for each of n bags the sum of weights [n, k] times the rows [n, k] of `table` [m, C]."""
    if table.shape[1] == 0:  # embedding_bag takes no such table
        return table[rows[:, 0]]
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def ragged_bag_sum(table: Tensor, rows: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    """`bag_sum` [n, C] of n bags that hold `sizes` [n] rows; their rows and weights [sum of sizes] lie in a line."""
    if table.shape[1] == 0:
        return table[:1].expand(len(sizes), 0)
    return F.embedding_bag(rows, table, sizes.cumsum(0) - sizes, mode="sum", per_sample_weights=weights)
