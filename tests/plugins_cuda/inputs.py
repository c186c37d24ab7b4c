"""Inputs of the operators, for the tests of their definitions and of their fronts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugins_cuda.roi_align_fpn import reference

TYPES = [torch.float32, torch.float16, torch.bfloat16]  # of the kernels
ALL_TYPES = [*TYPES, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def crowd(batch: int, count: int, seed: int, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Overlapping boxes and scores; whole: integer corners and few distinct scores, so that ties abound."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + torch.rand(batch, count, 2, generator=generator) * 60 + 1], dim=-1)
    scores = torch.rand(batch, count, generator=generator)
    return (boxes.round(), (scores * 8).round() / 8) if whole else (boxes, scores)


def pyramid(
    batch: int = 2,
    channels: int = 3,
    height: int = 64,
    width: int = 96,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    """P2..P5 of an image of 4 height x 4 width pixels."""
    generator = torch.Generator().manual_seed(height)
    sizes = [(max(height >> level, 1), max(width >> level, 1)) for level in range(4)]
    maps = [torch.randn(batch, channels, *size, generator=generator) for size in sizes]
    return [each.to(dtype).contiguous(memory_format=layout) for each in maps]


# Empty, inverted, tiny, huge and outside ones, for an image of 256 x 384.
SPECIAL_BOXES = [
    [0, 0, 0, 0],
    [20, 30, 20, 30],
    [50, 50, 49.5, 60],
    [300, 200, 10, 20],
    [1, 1, 1.25, 1.5],
    [-900.5, -900, 2000, 2000],
    [-80, -60, -10, -5],
    [380, 250, 500, 400],
    [1000, 1000, 1200, 1300],
    [-2, -2, 5, 5],
    [0, 0, 384, 256],
]


def fusion_inputs(
    seed: int,
    *,
    counts: list[int],
    rows: int = 6,
    stuff: int = 3,
    things: int = 2,
    height: int = 6,
    width: int = 9,
    mask_size: int = 5,
    sharp: float = 3.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Random detections over random logits, an image for every count. The images end inside their padding."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    extent = torch.tensor([4.0 * width, 4.0 * height])
    centre = torch.rand(batch, rows, 2, generator=generator) * extent
    half = torch.rand(batch, rows, 2, generator=generator) * extent * 0.4
    sizes = [[4 * height - image % 3, 4 * width - 3 * (image % 2)] for image in range(batch)]
    return {
        "semantic": (normal(stuff + things, height, width) * 2).to(dtype),
        "boxes": torch.cat([centre - half, centre + half], dim=-1),
        "classes": torch.randint(0, things, (batch, rows), generator=generator),
        "scores": torch.rand(batch, rows, generator=generator).sort(dim=1, descending=True)[0],
        "mask_logits": (normal(rows, mask_size, mask_size) * sharp + 0.5).to(dtype),
        "counts": torch.tensor(counts, dtype=torch.int32),
        "sizes": torch.tensor(sizes, dtype=torch.int32).reshape(batch, 2),
        "scales": torch.linspace(0.5, 1.5, batch),
    }


Pair = tuple[int, int]


@dataclass(frozen=True)
class DeformCase:
    """A deformable convolution; `spread` is the offsets' standard deviation in pixels."""

    batch: int = 1
    channels: int = 8
    size: Pair = (5, 7)
    out_channels: int = 4
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    masked: bool = False
    spread: float = 1.5

    @property
    def steps(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def tensors(
        self,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
        device: torch.device | str = "cpu",
    ) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.channels + self.size[0])

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        height, width = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        planes = self.batch, self.offset_groups * self.kernel[0] * self.kernel[1], height, width
        tensors = {
            "x": draw(self.batch, self.channels, *self.size).to(dtype).contiguous(memory_format=layout),
            "offset": torch.cat([draw(*planes), draw(*planes)], 1) * self.spread,
            "weight": draw(self.out_channels, self.channels // self.groups, *self.kernel).to(dtype),
            "bias": draw(self.out_channels),
        }
        if self.masked:
            tensors["mask"] = draw(*planes).sigmoid()
        return {name: tensor.to(device) for name, tensor in tensors.items()}


LARGEST = 6  # `scale` of room_inputs


def anchor_maps(batch: int, height: int, width: int, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """best_anchors' maps of three anchors, P2 of height x width, base anchors and sizes; many equal logits."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for level in range(5):
        size = (max(height >> level, 1), max(width >> level, 1))
        logits = (torch.randn(batch, 3, *size, generator=generator) * 4).round() / 4
        maps.append(torch.cat([logits, torch.randn(batch, 12, *size, generator=generator) / 2], dim=1))
    centre, side = torch.rand(5, 3, 2, generator=generator) * 8, torch.rand(5, 3, 2, generator=generator) * 20 + 4
    sizes = torch.tensor([[4 * height - 3, 4 * width - 1]] * batch, dtype=torch.int32)
    return maps, torch.cat([centre - side, centre + side], dim=2), sizes


def room_inputs(
    room: str, scale: int = 1, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Any]:
    """All arguments of an operator, larger in every direction where `scale` is larger; 1 to LARGEST."""
    if room == "nms":
        boxes, scores = crowd(scale, 60 * scale + 3, scale)
        classes = torch.arange(boxes.shape[1]).expand(scale, -1) % 3 if dtype == torch.float16 else None
        options = {"iou_threshold": 0.3, "score_threshold": 0.1, "max_output": 150, "inclusive": False}
        return {"boxes": boxes, "scores": scores, "classes": classes, **options}
    if room == "roi_align_fpn":
        maps = pyramid(scale, 10 * scale, 16 * scale, 20 * scale, dtype, layout)
        options = {"output_size": 3, "sampling_ratio": 2, "aligned": True, "inclusive": False, "rounded_levels": False}
        return {"features": maps, "rois": crowd(scale, 2 * scale, scale)[0], **options}
    if room == "roi_align_fpn/backward":
        values = room_inputs("roi_align_fpn", scale, dtype, layout)
        shape = (*values["rois"].shape[:2], values["features"][0].shape[1], 3, 3)
        return values | {"grad_output": torch.randn(shape, generator=torch.Generator().manual_seed(scale)).to(dtype)}
    if room == "best_anchors":
        maps, base, sizes = anchor_maps(scale, 4 * scale, 5 * scale)
        maps = [each.contiguous(memory_format=layout) for each in maps]
        return {"maps": maps, "base_anchors": base, "sizes": sizes, "top_n": 20, "inclusive": False}
    if room == "deform_conv":  # 2, 12, ... 288 blocks: the largest one's channels are not split
        case = DeformCase(batch=scale, channels=40, size=(8 * scale, 20 * scale), out_channels=10, kernel=(1, 1))
        return {**case.tensors(dtype, layout), "stride": 1, "padding": (1, 1), "dilation": 1, "mask": None}
    if room in ("deform_conv/backward", "deform_conv/columns"):
        values = room_inputs("deform_conv", scale, dtype, layout) | {"stride": [1, 1], "dilation": [1, 1]}
        values["mask"] = values["offset"][:, 1:].sigmoid()
        place, values_of = (scale, *values["offset"].shape[2:]), torch.Generator().manual_seed(scale)
        del values["bias"]
        if room == "deform_conv/backward":
            grad = torch.randn(scale, 10, *place[1:], generator=values_of).to(dtype)
            return values | {"grad_output": grad.contiguous(memory_format=layout)}
        del values["weight"]
        grad = torch.randn(*place, 1, 40, generator=values_of).to(dtype)
        return values | {"grad_columns": grad, "kernel_size": [1, 1], "deterministic": False}
    size = {"rows": 2 * scale, "height": 3 * scale, "width": 10 * scale}
    drawn = fusion_inputs(3, counts=[2 * scale] * scale, dtype=dtype, **size)
    drawn["semantic"] = drawn["semantic"].contiguous(memory_format=layout)
    options = {"num_stuff": 3, "stuff_area_limit": 20.0, "mask_overlap_threshold": 0.3}
    return drawn | options | {"heuristic": dtype == torch.float16}


def level_by_level(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    inclusive: bool = False,
    rounded_levels: bool = False,
) -> Tensor:
    """roi_align_fpn by indices: each level pools its own boxes alone. On a GPU the host waits for their numbers."""
    rois = reference.without_nonfinite(rois.to(torch.promote_types(features[0].dtype, torch.float32)))
    level = reference.assign_levels(rois.float(), inclusive, rounded_levels)
    pooled = features[0].new_zeros(*rois.shape[:2], features[0].shape[1], output_size, output_size)
    for index, feature in enumerate(features):
        image, row = torch.nonzero(level == index, as_tuple=True)
        boxes = torch.cat([image[:, None].to(rois.dtype), rois[image, row]], dim=1)
        part = reference.pool(feature.to(rois.dtype), boxes, output_size, 0.25 / 2**index, sampling_ratio, aligned)
        pooled[image, row] = part.to(pooled.dtype)
    return pooled
