"""Boxes x1, y1, x2, y2 in network pixels, x2 and y2 exclusive: coding, clipping, anchors, matching, sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas [N, 4] that move `anchors` [N, 4] onto `boxes` [N, 4] (Girshick et al., CVPR 2014)."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    box_size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + box_size / 2 - anchors[..., :2] - anchor_size / 2) / anchor_size
    scale = torch.log(box_size / anchor_size)
    return torch.cat([shift, scale], dim=-1) * shift.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes [..., 4] from deltas [..., 4] and anchors of a shape that broadcasts; growth is limited to 62.5 times."""
    wx, wy, ww, wh = weights
    width = anchors[..., 2] - anchors[..., 0]
    height = anchors[..., 3] - anchors[..., 1]
    centre_x = anchors[..., 0] + width / 2 + deltas[..., 0] / wx * width
    centre_y = anchors[..., 1] + height / 2 + deltas[..., 1] / wy * height
    half_w = width * torch.exp(torch.clamp(deltas[..., 2] / ww, max=MAX_LOG_RATIO)) / 2
    half_h = height * torch.exp(torch.clamp(deltas[..., 3] / wh, max=MAX_LOG_RATIO)) / 2
    return torch.stack([centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] limited to the images, sizes [B, 2] = (height, width)."""
    limit = sizes.to(boxes.dtype)[:, [1, 0, 1, 0]].unsqueeze(1)
    return torch.minimum(boxes.clamp(min=0), limit)


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors [len(ratios), 4] of one cell, centred on it; ratio = height / width, sides rounded at the stride."""
    rows = []
    for ratio in ratios:
        width = round(math.sqrt(stride * stride / ratio))
        height = round(width * ratio)
        half_w, half_h = width * scale / 2, height * scale / 2
        rows.append([stride / 2 - half_w, stride / 2 - half_h, stride / 2 + half_w, stride / 2 + half_h])
    return torch.tensor(rows)


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors [height * width * A, 4] of a feature map, ordered by (y, x, anchor)."""
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    grid_y = y[:, None].expand(height, width)
    grid_x = x[None, :].expand(height, width)
    shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (shift[:, :, None, :] + base).reshape(-1, 4)


def sample(positive: Tensor, negative: Tensor, total: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of at most total * fraction random positives and as many random negatives as fill up to `total`."""
    positives = positive.nonzero().squeeze(1)
    negatives = negative.nonzero().squeeze(1)
    wanted = min(int(total * positive_fraction), len(positives))
    positives = positives[torch.randperm(len(positives), device=positives.device)[:wanted]]
    negatives = negatives[torch.randperm(len(negatives), device=negatives.device)[: total - wanted]]
    return positives, negatives


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """values [B, N, C] at indices [B, K] -> [B, K, C]."""
    return torch.gather(values, 1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
