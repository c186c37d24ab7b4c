"""What boxes need in every convention: the weights of their coding, the grid of anchors, rows by index."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a delta's shift and of its growth.
RPN_WEIGHTS = (1.0, 1.0)
BOX_WEIGHTS = (10.0, 5.0)


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors [height * width * A, 4] of a feature map, ordered by (y, x, anchor)."""
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    grid_y = y[:, None].expand(height, width)
    grid_x = x[None, :].expand(height, width)
    shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (shift[:, :, None, :] + base).reshape(-1, 4)


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """values [B, N, C] at indices [B, K] -> [B, K, C]."""
    return torch.gather(values, 1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
