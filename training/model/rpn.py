"""The region proposal network (Ren et al., NIPS 2015), with proposals as fixed-size padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plugins_cuda
from training.config import RpnConfig
from training.conventions import OURS, Conventions
from training.model import boxes as B

STRIDES = (4, 8, 16, 32, 64)
LOWEST = torch.finfo(torch.float32).min


class RpnOutput(NamedTuple):
    """One entry a level, P2..P6, with N = height * width * anchors rows ordered by (y, x, anchor)."""

    logits: list[Tensor]  # B x N
    deltas: list[Tensor]  # B x N x 4
    anchors: list[Tensor]  # N x 4, network pixels


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
        logits, deltas, anchors = [], [], []
        for level, feature in enumerate(features):
            hidden = F.relu(self.conv(feature))
            logits.append(self.logits(hidden).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).float().permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4))
            height, width = feature.shape[2:]
            anchors.append(B.grid_anchors(self.base_anchors[level], height, width, STRIDES[level]))
        return RpnOutput(logits, deltas, anchors)

    def propose(self, output: RpnOutput, sizes: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
        """The best proposals of each image: boxes [B, top_n, 4] clipped to `sizes`, and which rows are valid."""
        boxes, scores = self.ranked(output, sizes, top_n)
        valid = scores > -torch.inf
        return boxes * valid.unsqueeze(-1), valid

    def ranked(self, output: RpnOutput, sizes: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
        """Boxes [B, top_n, 4] and their logits [B, top_n], descending; -inf in the rows that are padding.

        Top `top_n` of each level, decoded, clipped, NMS in each level; then the top `top_n` of all levels together.
        """
        batch, levels = sizes.shape[0], len(output.logits)
        best = [_best(*level, top_n) for level in zip(output.logits, output.deltas, output.anchors, strict=True)]
        level_scores, deltas, anchors = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        decoded = self.conventions.decode(deltas, anchors, B.RPN_WEIGHTS)
        boxes = self.conventions.clip(decoded, sizes).reshape(batch * levels, top_n, 4)
        scores = level_scores.reshape(batch * levels, top_n)
        # Rows without an anchor score -inf: over the threshold there are only real ones.
        threshold, inclusive = self.config.nms_threshold, self.conventions.inclusive
        kept, counts = plugins_cuda.nms(boxes, scores, threshold, LOWEST, top_n, inclusive=inclusive)
        valid = torch.arange(top_n, device=kept.device) < counts.unsqueeze(1)
        boxes = B.gather_rows(boxes, kept).reshape(batch, levels * top_n, 4)
        scores = torch.where(valid, torch.gather(scores, 1, kept), -torch.inf).reshape(batch, levels * top_n)
        scores, order = plugins_cuda.top_k(scores, top_n)
        return B.gather_rows(boxes, order), scores


def _best(logits: Tensor, deltas: Tensor, anchors: Tensor, top_n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, top_n] of one level in descending order, and the deltas and anchors [B, top_n, 4] of these rows."""
    # Small maps have fewer anchors than top_n: pad, so that the shapes never depend on the image size.
    scores, order = plugins_cuda.top_k(F.pad(logits, (0, top_n), value=-torch.inf), top_n)
    return scores, B.gather_rows(F.pad(deltas, (0, 0, 0, top_n)), order), F.pad(anchors, (0, 0, 0, top_n))[order]
