"""Batches of stripes and rectangles, and the demo's network on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from training.config import LossConfig
from training.data.batch import Batch
from training.losses import TrainingLosses
from training.model.upsnet import UPSNet
from training.model_config import ModelConfig

STUFF, THINGS = 4, 3


@pytest.fixture()
def losses(small: ModelConfig) -> TrainingLosses:
    torch.manual_seed(0)
    return TrainingLosses(UPSNet(small, STUFF, THINGS), LossConfig(semantic=1, semantic_roi=0.2, panoptic=0.5))


@pytest.fixture()
def make_batch() -> Callable[..., Batch]:
    """make_batch([3, 0]): two images, of three rectangles and of none, on four kinds of stuff in stripes."""

    def make(instances: Sequence[int], height: int = 64, width: int = 96, seed: int = 3) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        count = len(instances)
        semantic = (torch.arange(width) // 16 % STUFF).expand(count, height, width).clone()
        numbers = torch.zeros(count, height, width, dtype=torch.int16)
        boxes, labels = [], []
        for b, n in enumerate(instances):
            corner = torch.randint(0, 40, (n, 2), generator=generator)
            box = torch.cat([corner, corner + torch.randint(8, 24, (n, 2), generator=generator)], dim=1)
            label = torch.randint(0, THINGS, (n,), generator=generator)
            for i, (x1, y1, x2, y2) in enumerate(box.tolist()):
                numbers[b, y1:y2, x1:x2] = i + 1
                semantic[b, y1:y2, x1:x2] = STUFF + label[i]
            boxes.append(box.float())
            labels.append(label)
        return Batch(
            images=torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator),
            sizes=torch.tensor([[height, width]] * count, dtype=torch.int32),
            scales=torch.ones(count),
            semantic=semantic.byte(),
            instances=numbers,
            boxes=boxes,
            labels=labels,
            seeds=torch.arange(count) * 1000003 + 17,
            image_ids=list(range(count)),
        )

    return make
