"""The training set's batches as the loop sees them, and how many images a second the loader alone brings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.config import Config
from training.data.batch import Batch
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import make_loader, reading
from training.data.open import make_sampler
from training.schedule import make_plan


class Rate(NamedTuple):
    """Of the loader alone."""

    workers: int  # 0: the process itself
    images: int
    seconds: float
    images_per_s: float


def open_loader(
    dataset: PanopticDataset, config: Config, batches: int, workers: int, device: torch.device
) -> DataLoader:
    """The first `batches` batches of a run on one GPU."""
    plan = make_plan(config.schedule, 1).model_copy(update={"iterations": batches})
    return make_loader(dataset, make_sampler(dataset, config, plan), workers, device.type == "cuda")


def take_batches(dataset: PanopticDataset, config: Config, count: int, device: torch.device) -> list[Batch]:
    """The first `count` batches, kept in memory."""
    with reading(open_loader(dataset, config, count, 0, device)) as batches:
        return list(tqdm(batches, desc="batches", total=count, unit="batch", disable=None))


def loader_rates(
    dataset: PanopticDataset, config: Config, workers: Sequence[int], batches: int, device: torch.device
) -> list[Rate]:
    """For each number of workers, over `batches` batches.

    What came before every worker had delivered its first batch does not count.
    """
    rates = []
    for count in workers:
        warm_up = max(1, count)
        with reading(open_loader(dataset, config, batches + warm_up, count, device)) as loader:
            for _ in islice(loader, warm_up):
                pass
            start = time.perf_counter()
            bar = tqdm(loader, f"{count} workers", batches, unit="batch", disable=None)
            images = sum(len(batch.images) for batch in bar)
            seconds = time.perf_counter() - start
        rates.append(Rate(count, images, seconds, images / seconds))
    return rates
