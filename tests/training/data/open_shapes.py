"""The small data set of shapes as training opens it, and samplers over any number of images."""

from __future__ import annotations

from pathlib import Path

from tests.training.tiny_network import shapes_split
from training.config import ScheduleConfig
from training.data.batch import StepSampler
from training.data.coco_panoptic import PanopticDataset
from training.data.transforms import NO_AUGMENTATION, Augment
from training.schedule import make_plan
from upsnet.geometry import ResizeRule


def open_shapes(folder: Path, augment: Augment = NO_AUGMENTATION, divisor: int = 32) -> PanopticDataset:
    return PanopticDataset(shapes_split(folder), ResizeRule(short_side=80, max_side=120, divisor=divisor), augment)


def sampler(
    images: int | list[int], total: int, steps: int, seed: int = 0, *, world: int = 1, passes: int = 1, **place: int
) -> StepSampler:
    """Over a number of images, or their groups; `total` images a step. place: rank, first_step."""
    schedule = ScheduleConfig(iterations=steps, images_per_step=total, images_per_gpu=total // world // passes)
    groups = images if isinstance(images, list) else [0] * images
    return StepSampler(groups, make_plan(schedule, world), seed, **place)
