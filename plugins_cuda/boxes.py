"""What boxes need in operators and networks alike: their coding, the grid of anchors, rows by index.

`inclusive`: x2 and y2 are the last pixels inside the box, not the first ones outside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors [height * width * A, 4] of a feature map, ordered by (y, x, anchor); base [A, 4]: of its first cell."""
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    grid_y = y[:, None].expand(height, width)
    grid_x = x[None, :].expand(height, width)
    shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (shift[:, :, None, :] + base).reshape(-1, 4)


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """values [B, N, C] at indices [B, K] -> [B, K, C]."""
    return torch.gather(values, 1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float], inclusive: bool) -> Tensor:
    """Boxes [..., 4] from deltas [..., 4] and anchors of a shape that broadcasts (Girshick et al., CVPR 2014). Shifts
    and growths were multiplied by `weights`; growth is at most 62.5 times."""
    shift, growth = deltas.split(2, dim=-1)
    near, far = anchors.split(2, dim=-1)
    sides = far - near + float(inclusive)
    centre = near + sides / 2 + shift / weights[0] * sides
    half = sides * torch.exp(torch.clamp(growth / weights[1], max=MAX_LOG_RATIO)) / 2
    return torch.cat([centre - half, centre + half - float(inclusive)], dim=-1)


def clip(boxes: Tensor, sizes: Tensor, inclusive: bool) -> Tensor:
    """Boxes [B, N, 4] limited to the images, sizes [B, 2] = (height, width)."""
    limit = far_corners(sizes.to(boxes.dtype)).unsqueeze(1) - float(inclusive)
    return torch.minimum(boxes.clamp(min=0), limit)


def far_corners(sizes: Tensor) -> Tensor:
    """[B, 4], (width, height, width, height), of sizes [B, 2] = (height, width).

    Not by a list as an index: that is copied to the device, and the host waits for it.
    """
    height, width = sizes.split(1, dim=1)
    return torch.cat([width, height, width, height], dim=1)
