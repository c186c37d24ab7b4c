"""The region proposal network (Ren et al., NIPS 2015), with proposals as fixed-size padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

import plugins_cuda
from training.config import RpnConfig
from training.model import boxes as B

STRIDES = (4, 8, 16, 32, 64)
LOWEST = torch.finfo(torch.float32).min


class RpnOutput(NamedTuple):
    """One entry a level, P2..P6, with N = height * width * anchors rows ordered by (y, x, anchor)."""

    logits: list[Tensor]  # B x N
    deltas: list[Tensor]  # B x N x 4
    anchors: list[Tensor]  # N x 4, network pixels


class RPN(nn.Module):
    """`inclusive`: anchors and proposals have the corners of the legacy convention, see `boxes`."""

    def __init__(self, in_channels: int, config: RpnConfig, inclusive: bool = False) -> None:
        super().__init__()
        self.config = config
        self.inclusive = inclusive
        ratios = config.anchor_ratios
        self.conv = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        self.logits = nn.Conv2d(config.channels, len(ratios), 1)
        self.deltas = nn.Conv2d(config.channels, 4 * len(ratios), 1)
        for layer in (self.conv, self.logits, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        base = torch.stack([B.base_anchors(stride, config.anchor_scale, ratios, inclusive) for stride in STRIDES])
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
        """The best proposals of each image: boxes [B, top_n, 4] clipped to `sizes`, and which rows are valid.

        Top `top_n` of each level, decoded, clipped, NMS in each level; then the top `top_n` of all levels together.
        """
        batch = sizes.shape[0]
        per_level = [
            self._best_of_level(*level, sizes, top_n)
            for level in zip(output.logits, output.deltas, output.anchors, strict=True)
        ]
        levels = len(per_level)
        boxes = torch.stack([boxes for boxes, _ in per_level], dim=1).reshape(batch * levels, top_n, 4)
        scores = torch.stack([scores for _, scores in per_level], dim=1).reshape(batch * levels, top_n)
        # Rows without an anchor score -inf: over the threshold there are only real ones.
        threshold = self.config.nms_threshold
        kept, counts = plugins_cuda.nms(boxes, scores, threshold, LOWEST, top_n, inclusive=self.inclusive)
        valid = torch.arange(top_n, device=kept.device) < counts.unsqueeze(1)
        boxes = B.gather_rows(boxes, kept).reshape(batch, levels * top_n, 4)
        scores = torch.gather(scores, 1, kept).masked_fill(~valid, -torch.inf).reshape(batch, levels * top_n)
        scores, order = plugins_cuda.top_k(scores, top_n)
        valid = scores > -torch.inf
        return B.gather_rows(boxes, order) * valid.unsqueeze(-1), valid

    def _best_of_level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: Tensor, top_n: int
    ) -> tuple[Tensor, Tensor]:
        batch = logits.shape[0]
        # Small maps have fewer anchors than top_n: pad, so that the shapes never depend on the image size.
        scores, order = plugins_cuda.top_k(F.pad(logits, (0, top_n), value=-torch.inf), top_n)
        chosen = B.gather_rows(F.pad(deltas, (0, 0, 0, top_n)), order)
        bases = F.pad(anchors, (0, 0, 0, top_n))[order.reshape(-1)].reshape(batch, top_n, 4)
        decoded = B.decode(chosen, bases, B.RPN_WEIGHTS, self.inclusive)
        return B.clip(decoded, sizes, self.inclusive), scores

    def losses(self, output: RpnOutput, sizes: Tensor, truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness and box loss of a batch, `truth` one [n, 4] a image (n may be 0); each a mean over images."""
        anchors = torch.cat(output.anchors)
        logits, deltas = torch.cat(output.logits, dim=1), torch.cat(output.deltas, dim=1)
        objectness, regression = logits.new_zeros(()), logits.new_zeros(())
        for i, boxes in enumerate(truth):
            positive, negative, matched = self.match(anchors, boxes, sizes[i])
            pos, neg = B.sample(positive, negative, self.config.samples, self.config.positive_fraction)
            chosen = torch.cat([pos, neg])
            target = torch.zeros_like(logits[i, chosen])
            target[: len(pos)] = 1
            count = max(len(chosen), 1)
            loss = F.binary_cross_entropy_with_logits(logits[i, chosen], target, reduction="sum")
            objectness = objectness + loss / count
            wanted = B.encode(boxes[matched[pos]], anchors[pos], B.RPN_WEIGHTS)
            loss = F.smooth_l1_loss(deltas[i, pos], wanted, beta=1 / 9, reduction="sum")
            regression = regression + loss / count
        return objectness / len(truth), regression / len(truth)

    def match(self, anchors: Tensor, boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each anchor: is it positive, is it negative, and the index of its best box.

        Only anchors wholly inside the unpadded image count. Positive: IoU >= positive_iou, or the best of a box.
        """
        height, width = size.tolist()
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        if len(boxes) == 0:
            return torch.zeros_like(inside), inside, torch.zeros_like(inside, dtype=torch.long)
        iou = box_iou(anchors, boxes) * inside.unsqueeze(1)
        best, matched = iou.max(dim=1)
        positive = best >= self.config.positive_iou
        best_of_box = iou.max(dim=0).values
        favourite = (iou == best_of_box) & (best_of_box > 0)
        matched = torch.where(favourite.any(1), favourite.to(torch.uint8).argmax(1), matched)
        positive = (positive | favourite.any(1)) & inside
        return positive, inside & ~positive & (best < self.config.negative_iou), matched
