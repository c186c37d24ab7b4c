"""Seeded inputs that look like a network's: clustered boxes, softmax scores, smooth logits, offsets of some pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How big the cases are."""

    height: int = 800
    width: int = 1344
    stuff: int = 53
    things: int = 80
    detections: int = 100
    channels: int = 256
    out_channels: int = 128
    rois: int = 1000
    output_size: int = 7
    boxes: int = 1000
    proposal_rows: int = 5


FULL = Sizes()
DEMO = Sizes(96, 128, 4, 5, 32, 64, 64, 100, 7, 100, 5)  # about training/configs/shapes.yaml's
QUICK = Sizes(64, 96, 5, 3, 7, 16, 8, 40, 7, 30, 2)
MIDDLE = Sizes(512, 640, 13, 20, 100, 72, 80, 100, 7, 250, 2)  # what only larger tensors reach, on an emulator too


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered_boxes(random: torch.Generator, batch: int, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes [B, N, 4] inside the image and the object [B, N] that each belongs to: about 20 slightly different boxes an
    object, so that NMS has something to suppress. Sides are log-uniform from 8 pixels to the image's short side."""
    objects = max(1, count // 20)
    side = 8 * (min(height, width) / 8) ** torch.rand(batch, objects, 1, generator=random)
    stretch = 2 ** (torch.rand(batch, objects, 1, generator=random) - 0.5)
    size = torch.cat([side * stretch, side / stretch], dim=-1)
    centre = torch.rand(batch, objects, 2, generator=random) * torch.tensor([float(width), float(height)])
    owner = torch.randint(objects, (batch, count), generator=random)
    rows = owner[..., None].expand(-1, -1, 2)
    centre, size = centre.gather(1, rows), size.gather(1, rows)
    centre = centre + 0.1 * size * torch.randn(batch, count, 2, generator=random)
    size = size * torch.exp(0.1 * torch.randn(batch, count, 2, generator=random))
    return clip(torch.cat([centre - size / 2, centre + size / 2], dim=-1), height, width), owner


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes inside the image, at least a pixel wide and high."""
    limit = torch.tensor([float(width), float(height)])
    low = boxes[..., :2].clamp(min=0).minimum(limit - 1)
    return torch.cat([low, boxes[..., 2:].minimum(limit).maximum(low + 1)], dim=-1)


def proposals(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """boxes [rows, N, 4], scores [rows, N]: a pyramid level a row, as the proposal network has them."""
    random = generator(seed)
    boxes, _ = clustered_boxes(random, sizes.proposal_rows, sizes.boxes, sizes.height, sizes.width)
    return {"boxes": boxes, "scores": torch.randn(boxes.shape[:2], generator=random).sigmoid()}


def detections(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """boxes [1, N * things, 4], scores, classes [1, N * things]: a box for each class of each proposal; a softmax."""
    random = generator(seed)
    base, owner = clustered_boxes(random, 1, sizes.boxes, sizes.height, sizes.width)
    count, classes = sizes.boxes, sizes.things
    extent = (base[0, :, 2:] - base[0, :, :2]).repeat(1, 2)[:, None]
    boxes = base[0, :, None] + 0.03 * extent * torch.randn(count, classes, 4, generator=random)
    logits = torch.randn(count, classes + 1, generator=random)
    peak = torch.rand(count, generator=random) * 9  # from background to certain
    logits[torch.arange(count), owner[0] * 7 % classes] += peak
    logits[:, classes] += 4
    return {
        "boxes": clip(boxes, sizes.height, sizes.width).reshape(1, -1, 4),
        "scores": logits.softmax(-1)[:, :classes].reshape(1, -1).contiguous(),
        "classes": torch.arange(classes).repeat(count)[None],
    }


def pyramid(sizes: Sizes, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """P2..P5, each [1, C, H / s, W / s], and RoIs [1, R, 4]."""
    random = generator(seed)
    features = [
        torch.randn(1, sizes.channels, -(-sizes.height // stride), -(-sizes.width // stride), generator=random)
        for stride in (4, 8, 16, 32)
    ]
    return features, clustered_boxes(random, 1, sizes.rois, sizes.height, sizes.width)[0]


def elongated(sizes: Sizes, seed: int = 0) -> Tensor:
    """RoIs [1, R, 4] nine pixels high that are as wide as the image, and the other way round."""
    far = torch.tensor([float(sizes.width), float(sizes.height)]).expand(sizes.rois, 2).clone()
    low, across = torch.zeros(sizes.rois, 2), torch.arange(sizes.rois) % 2
    row = torch.arange(sizes.rois)
    low[row, across] = (far[row, across] - 9) * torch.rand(sizes.rois, generator=generator(seed))
    far[row, across] = low[row, across] + 9
    return torch.cat([low, far], dim=1)[None]


def deformed(sizes: Sizes, spread: float = 1.5, seed: int = 0) -> dict[str, Tensor]:
    """x, offset (of `spread` pixels), weight and bias of a 3 x 3 convolution at a quarter of the image's size."""
    random = generator(seed)
    height, width = sizes.height // 4, sizes.width // 4
    return {
        "x": torch.randn(1, sizes.channels, height, width, generator=random),
        "offset": spread * torch.randn(1, 18, height, width, generator=random),
        "weight": torch.randn(sizes.out_channels, sizes.channels, 3, 3, generator=random) / (9 * sizes.channels) ** 0.5,
        "bias": torch.randn(sizes.out_channels, generator=random),
    }


def panoptic(sizes: Sizes, seed: int = 0) -> dict[str, Any]:  # Any: keywords beside numbers
    """The tensors that `plugins_cuda.panoptic_fusion` takes, by its names; one image."""
    random = generator(seed)
    count, size = sizes.detections, 28
    height, width = sizes.height // 4, sizes.width // 4
    coarse = 3 * torch.randn(1, sizes.stuff + sizes.things, -(-height // 16), -(-width // 16), generator=random)
    boxes, _ = clustered_boxes(random, 1, count, sizes.height, sizes.width)
    axis = torch.linspace(-1, 1, size)
    blob = 4 - 6 * (axis[:, None] ** 2 + axis**2)
    return {
        "semantic": F.interpolate(coarse, (height, width), mode="bicubic"),
        "boxes": boxes - torch.tensor([0.0, 0, 1, 1]),  # inclusive corners
        "classes": torch.randint(sizes.things, (1, count), generator=random),
        "scores": torch.rand(1, count, generator=random).sort(descending=True)[0],
        "mask_logits": blob + torch.randn(1, count, size, size, generator=random),
        "counts": torch.tensor([count], dtype=torch.int32),
        "sizes": torch.tensor([[sizes.height, sizes.width]], dtype=torch.int32),
        "scales": torch.ones(1),
    }


def crowd(sizes: Sizes, seed: int = 0) -> dict[str, Any]:
    """As `panoptic`, with all detections of one class, as people in a street: each lies over some of the others, and
    who stays depends on who stayed before."""
    random = generator(seed)
    tensors = panoptic(sizes, seed)
    count, limit = sizes.detections, torch.tensor([float(sizes.width), float(sizes.height)])
    height = sizes.height / 12 * 6 ** torch.rand(1, count, 1, generator=random)  # a twelfth to half of the image's
    size = torch.cat([height * (0.4 + 0.4 * torch.rand(1, count, 1, generator=random)), height], dim=-1)
    centre = (0.2 + 0.6 * torch.rand(1, count, 2, generator=random)) * limit
    boxes = clip(torch.cat([centre - size / 2, centre + size / 2], dim=-1), sizes.height, sizes.width)
    return tensors | {
        "boxes": boxes - torch.tensor([0.0, 0, 1, 1]),
        "classes": torch.zeros_like(tensors["classes"]),
    }


def heuristic(sizes: Sizes, whole: bool, seed: int = 0) -> dict[str, Any]:
    """Those of the heuristic merge: things are one channel. As many boxes of all sizes as a photo has objects, or
    (whole) every detection over the whole image."""
    random = generator(seed)
    tensors = panoptic(sizes, seed)
    count = sizes.detections if whole else min(15, sizes.detections)
    boxes, _ = clustered_boxes(random, count, 1, sizes.height, sizes.width)
    if whole:
        boxes = torch.tensor([0.0, 0, sizes.width, sizes.height]).expand(count, 1, 4)
    rows = {name: tensors[name][:, :count].contiguous() for name in ("classes", "scores", "mask_logits")}
    counts = torch.tensor([count], dtype=torch.int32)
    semantic = tensors["semantic"][:, : sizes.stuff + 1].contiguous()
    return tensors | rows | {"semantic": semantic, "boxes": boxes.transpose(0, 1).contiguous(), "counts": counts}
