"""Boxes x1, y1, x2, y2 in network pixels: coding, clipping, overlap, anchors.

x2 and y2 are exclusive: a box is x2 - x1 wide. `inclusive` is the legacy convention of imported networks: x2 and y2 are
the last pixels inside, a box is x2 - x1 + 1 wide and its centre lies at x1 + width / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def sides(boxes: Tensor, inclusive: bool = False) -> Tensor:
    """Widths and heights [..., 2] of boxes [..., 4]."""
    return boxes[..., 2:] - boxes[..., :2] + float(inclusive)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float], inclusive: bool = False) -> Tensor:
    """Deltas [N, 4] that move `anchors` [N, 4] onto `boxes` [N, 4] (Girshick et al., CVPR 2014)."""
    anchor_size, box_size = sides(anchors, inclusive), sides(boxes, inclusive)
    shift = (boxes[..., :2] + box_size / 2 - anchors[..., :2] - anchor_size / 2) / anchor_size
    scale = torch.log(box_size / anchor_size)
    parts = zip([*shift.unbind(-1), *scale.unbind(-1)], weights, strict=True)
    return torch.stack([part * weight for part, weight in parts], dim=-1)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float], inclusive: bool = False) -> Tensor:
    """Boxes [..., 4] from deltas [..., 4] and anchors of a shape that broadcasts; growth is limited to 62.5 times."""
    wx, wy, ww, wh = weights
    width, height = sides(anchors, inclusive).unbind(-1)
    centre_x = anchors[..., 0] + width / 2 + deltas[..., 0] / wx * width
    centre_y = anchors[..., 1] + height / 2 + deltas[..., 1] / wy * height
    half_w = width * torch.exp(torch.clamp(deltas[..., 2] / ww, max=MAX_LOG_RATIO)) / 2
    half_h = height * torch.exp(torch.clamp(deltas[..., 3] / wh, max=MAX_LOG_RATIO)) / 2
    last = float(inclusive)
    corners = [centre_x - half_w, centre_y - half_h, centre_x + half_w - last, centre_y + half_h - last]
    return torch.stack(corners, dim=-1)


def clip(boxes: Tensor, sizes: Tensor, inclusive: bool = False) -> Tensor:
    """Boxes [B, N, 4] limited to the images, sizes [B, 2] = (height, width)."""
    limit = sizes.to(boxes.dtype)[:, [1, 0, 1, 0]].unsqueeze(1) - float(inclusive)
    return torch.minimum(boxes.clamp(min=0), limit)


def iou(a: Tensor, b: Tensor, inclusive: bool = False) -> Tensor:
    """Intersection over union [..., N, M] of boxes [..., N, 4] and [..., M, 4]; 0 where a box is empty."""
    extra = float(inclusive)
    top_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    bottom_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (bottom_right - top_left + extra).clamp(min=0).prod(-1)
    area_a, area_b = (sides(boxes, inclusive).clamp(min=0).prod(-1) for boxes in (a, b))
    union = area_a[..., :, None] + area_b[..., None, :] - shared
    return torch.where(union > 0, shared / union, 0.0)


def base_anchors(stride: int, scale: float, ratios: Sequence[float], inclusive: bool = False) -> Tensor:
    """Anchors [len(ratios), 4] of one cell, centred on it; ratio = height / width, sides rounded at the stride."""
    last = float(inclusive)
    centre = (stride - last) / 2
    rows = []
    for ratio in ratios:
        width = round(math.sqrt(stride * stride / ratio))
        height = round(width * ratio)
        half_w, half_h = (width * scale - last) / 2, (height * scale - last) / 2
        rows.append([centre - half_w, centre - half_h, centre + half_w, centre + half_h])
    return torch.tensor(rows)


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
