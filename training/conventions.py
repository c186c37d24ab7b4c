"""What weights take for granted about boxes, samples and pixels, which differs between families of networks.

A network holds its `Conventions` and asks them, so that no other file has to know which family it is of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plugins_cuda import boxes as coding
from plugins_cuda.boxes import far_corners as far_corners


def rounded_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors float64 [len(ratios), 4] centred on a cell, exclusive corners; ratio = height / width. The sides are
    rounded at the stride and then scaled."""
    widths = [round(math.sqrt(stride * stride / ratio)) for ratio in ratios]
    sides = [[width, round(width * ratio)] for width, ratio in zip(widths, ratios, strict=True)]
    half = torch.tensor(sides, dtype=torch.float64) * scale / 2
    return torch.cat([stride / 2 - half, stride / 2 + half], dim=1)


def exact_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors float64 [len(ratios), 4] centred on a cell's corner, exclusive corners; ratio = height / width. Nothing
    is rounded."""
    widths = [math.sqrt((stride * scale) ** 2 / ratio) for ratio in ratios]
    half = torch.tensor([[width, width * ratio] for width, ratio in zip(widths, ratios, strict=True)]).double() / 2
    return torch.cat([-half, half], dim=1)


@dataclass(frozen=True)
class Conventions:
    """The defaults are ours. Boxes are x1, y1, x2, y2 in network pixels, their widths x2 - x1 + `inclusive`."""

    inclusive: bool = False  # x2 and y2 are the last pixels inside the box; else the first ones outside
    aligned: bool = True  # RoIAlign shifts the samples by half a pixel
    samples: int = 2  # of RoIAlign in a bin, in each direction; 0: as many as a box needs
    rounded_levels: bool = False  # RoIAlign's level is floored after it was rounded; roi_align_fpn/reference.py
    empty_proposals: bool = True  # the RPN proposes boxes without width or height too, which overlap nothing
    anchors: Callable[[int, float, Sequence[float]], Tensor] = rounded_anchors  # of a cell: stride, scale, ratios
    stride_first: bool = False  # a stage of a ResNet has its stride in the first 1x1; else in the 3x3
    context_of_padding: bool = False  # the FPN's global context is a mean over the padding too
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def sides(self, boxes: Tensor) -> Tensor:
        """Widths and heights [..., 2] of boxes [..., 4]."""
        near, far = boxes.split(2, dim=-1)
        return far - near + float(self.inclusive)

    def encode(self, boxes: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
        """Deltas [N, 4] that move `anchors` [N, 4] onto `boxes` [N, 4] (Girshick et al., CVPR 2014): shifts, logarithms
        of growth, each times its weight."""
        anchor_size, box_size = self.sides(anchors), self.sides(boxes)
        shift = (boxes[..., :2] + box_size / 2 - anchors[..., :2] - anchor_size / 2) / anchor_size
        scale = torch.log(box_size / anchor_size)
        return torch.cat([shift * weights[0], scale * weights[1]], dim=-1)

    def decode(self, deltas: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
        """Boxes [..., 4] from deltas [..., 4] and anchors of a shape that broadcasts; growth is at most 62.5 times."""
        return coding.decode(deltas, anchors, weights, self.inclusive)

    def clip(self, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Boxes [B, N, 4] limited to the images, sizes [B, 2] = (height, width)."""
        return coding.clip(boxes, sizes, self.inclusive)

    def iou(self, a: Tensor, b: Tensor) -> Tensor:
        """Intersection over union [..., N, M] of boxes [..., N, 4] and [..., M, 4]; 0 where a box is empty."""
        top_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
        bottom_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
        shared = (bottom_right - top_left + float(self.inclusive)).clamp(min=0).prod(-1)
        area_a, area_b = (self.sides(boxes).clamp(min=0).prod(-1) for boxes in (a, b))
        union = area_a[..., :, None] + area_b[..., None, :] - shared
        return torch.where(union > 0, shared / union, 0.0)

    def base_anchors(self, stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
        """Anchors float32 [len(ratios), 4] of the first cell of a level."""
        return self.from_exclusive(self.anchors(stride, scale, ratios)).float()

    def from_exclusive(self, boxes: Tensor) -> Tensor:
        """Boxes [..., 4] whose x2 and y2 are the first pixels outside, as the data set and AP have them -> these."""
        return _shrunk(boxes, int(self.inclusive))

    def to_exclusive(self, boxes: Tensor) -> Tensor:
        return _shrunk(boxes, -int(self.inclusive))

    def to_inclusive(self, boxes: Tensor) -> Tensor:
        """The corners that the panoptic head takes: x2 and y2 are the last pixels inside."""
        return _shrunk(boxes, 1 - int(self.inclusive))


def _shrunk(boxes: Tensor, pixels: int) -> Tensor:
    near, far = boxes.split(2, dim=-1)
    return torch.cat([near, far - pixels], dim=-1) if pixels else boxes


OURS = Conventions()
UPSNET = Conventions(  # of the original's weights
    inclusive=True,
    aligned=False,
    stride_first=True,
    context_of_padding=True,
    pixel_mean=(122.7717, 115.9465, 102.9801),
    pixel_std=(1.0, 1.0, 1.0),
)
DETECTRON2 = Conventions(  # of detectron2's weights that were trained from MSRA's ResNets, as its Panoptic FPNs
    samples=0,
    rounded_levels=True,
    empty_proposals=False,
    anchors=exact_anchors,
    stride_first=True,
    pixel_std=(1.0, 1.0, 1.0),
)
ConventionsName = Literal["ours", "upsnet", "detectron2"]  # in configurations
NAMED = {"ours": OURS, "upsnet": UPSNET, "detectron2": DETECTRON2}
