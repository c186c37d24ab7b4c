"""The region proposal network (Ren et al., NIPS 2015), with proposals as fixed-size padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plugins_cuda
from plugins_cuda.best_anchors.reference import rows_of
from training.conventions import OURS, Conventions
from training.model import boxes as B
from training.model_config import RpnConfig

STRIDES = (4, 8, 16, 32, 64)
LOWEST = torch.finfo(torch.float32).min


class RpnOutput(NamedTuple):
    """One map a level, P2..P6, B x 5A x h x w: the logits of a cell's A anchors, then the deltas of each anchor."""

    maps: list[Tensor]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Logits [B, N] and deltas [B, N, 4] of all anchors, ordered by (level, y, x, anchor)."""
        logits, deltas = zip(*map(rows_of, self.maps), strict=True)
        return torch.cat(logits, 1), torch.cat(deltas, 1)


class RPN(nn.Module):
    """Features of the levels -> logits, deltas and anchors -> proposals, all in the network's conventions."""

    def __init__(self, in_channels: int, config: RpnConfig, conventions: Conventions = OURS) -> None:
        super().__init__()
        self.config = config
        self.conventions = conventions
        ratios = config.anchor_ratios
        self.conv = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        self.logits = nn.Conv2d(config.channels, len(ratios), 1)
        self.deltas = nn.Conv2d(config.channels, 4 * len(ratios), 1)
        for layer in (self.conv, self.logits, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        base = torch.stack([conventions.base_anchors(stride, config.anchor_scale, ratios) for stride in STRIDES])
        self.register_buffer("base_anchors", base, persistent=False)
        self.base_anchors: Tensor

    def forward(self, features: Sequence[Tensor]) -> RpnOutput:
        weight = torch.cat([self.logits.weight, self.deltas.weight])
        bias = torch.cat([self.logits.bias, self.deltas.bias])  # type: ignore[list-item]
        return RpnOutput([F.conv2d(F.relu(self.conv(feature)), weight, bias).float() for feature in features])

    def anchors(self, output: RpnOutput) -> Tensor:
        """All anchors [N, 4], network pixels, ordered by (level, y, x, anchor)."""
        levels = zip(self.base_anchors, output.maps, STRIDES, strict=True)
        return torch.cat([B.grid_anchors(base, m.shape[2], m.shape[3], stride) for base, m, stride in levels])

    def propose(self, output: RpnOutput, sizes: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
        """The best proposals of each image: boxes [B, top_n, 4] clipped to `sizes`, and which rows are valid."""
        boxes, scores = self.ranked(output, sizes, top_n)
        valid = scores > -torch.inf
        return boxes * valid.unsqueeze(-1), valid

    def ranked(self, output: RpnOutput, sizes: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
        """Boxes [B, top_n, 4] and their logits [B, top_n], descending; -inf in the rows that are padding.

        Top `top_n` of each level, decoded, clipped, NMS in each level; then the top `top_n` of all levels together.
        """
        inclusive, levels = self.conventions.inclusive, len(STRIDES)
        found = plugins_cuda.best_anchors(output.maps, self.base_anchors, sizes.int(), top_n, inclusive)
        boxes, scores = (each.flatten(0, 1) for each in found)
        if not self.conventions.empty_proposals:  # nor those that are NaN
            scores = torch.where((self.conventions.sides(boxes) > 0).all(dim=2), scores, -torch.inf)
        # Rows without an anchor score -inf: over the threshold there are only real ones.
        kept, counts = plugins_cuda.nms(boxes, scores, self.config.nms_threshold, LOWEST, top_n, inclusive=inclusive)
        valid = torch.arange(top_n, device=kept.device) < counts.unsqueeze(1)
        boxes = B.gather_rows(boxes, kept).reshape(-1, levels * top_n, 4)
        scores = torch.where(valid, torch.gather(scores, 1, kept), -torch.inf).reshape(-1, levels * top_n)
        scores, order = plugins_cuda.top_k(scores, top_n)
        return B.gather_rows(boxes, order), scores
