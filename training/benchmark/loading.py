"""The training set's batches as the loop sees them, and how many images a second the loader alone brings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.config import Config
from training.data.batch import Batch, permutation
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import make_loader, reading
from training.data.open import make_sampler
from training.schedule import make_plan
from upsnet.datasets.places import read_file, together
from upsnet.datasets.shards.write import write_shards

TURNS = 7  # of each, folders and shards
SHARD = 64 << 20  # bytes


class Rate(NamedTuple):
    """Of the loader alone."""

    workers: int  # 0: the process itself
    images: int
    seconds: float
    images_per_s: float


class Turns(NamedTuple):
    """The same images from files in folders and from shards, by turns."""

    workers: int
    folders: list[float]  # images a second of the loader
    shards: list[float]
    folders_ms: list[float]  # of one core an image, whatever else the machine does
    shards_ms: list[float]
    folders_read: list[float]  # photos with their PNGs a second of one core, read whole and not decoded
    shards_read: list[float]

    def ratios(self) -> dict[str, float]:
        """Of the medians; over 1: shards are faster."""
        return {
            "ratio": median(self.shards) / median(self.folders),
            "ratio_core": median(self.folders_ms) / median(self.shards_ms),
            "ratio_read": median(self.shards_read) / median(self.folders_read),
        }


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


def compare_shards(
    folders: PanopticDataset, shards: PanopticDataset, config: Config, workers: int, batches: int, device: torch.device
) -> Turns:
    """Both data sets hold the same images."""
    turns = Turns(workers, [], [], [], [], [], [])
    for dataset in (folders, shards):
        reads_per_s(dataset)  # into the system's cache
    for turn in range(TURNS):
        for dataset, rates, milliseconds, reads in (
            (folders, turns.folders, turns.folders_ms, turns.folders_read),
            (shards, turns.shards, turns.shards_ms, turns.shards_read),
        ):
            rates += [rate.images_per_s for rate in loader_rates(dataset, config, [workers], batches, device)]
            milliseconds.append(core_ms(dataset, turn))
            reads.append(reads_per_s(dataset))
    return turns


def core_ms(dataset: PanopticDataset, draw: int) -> float:
    """Of this process, an image."""
    start = time.process_time()
    for index in range(len(dataset)):
        dataset[draw, index]
    return 1e3 * (time.process_time() - start) / len(dataset)


def reads_per_s(dataset: PanopticDataset, least: float = 0.3) -> float:
    """Photos with their PNGs, whole and in another order than they lie, for `least` seconds of this process."""
    records = [dataset.records[index] for index in permutation(0, 0, len(dataset)).tolist()]
    start, count = time.process_time(), 0
    while time.process_time() - start < least:
        for record in records:
            for file in together(record.photo, record.png):
                read_file(file)
        count += len(records)
    return count / (time.process_time() - start)


def packed(dataset: PanopticDataset, folder: Path) -> PanopticDataset:
    """The same data set in shards, which are written into `folder`."""
    split = write_shards(dataset.folder.split, str(folder), SHARD).split
    return PanopticDataset(split, dataset.rule, dataset.augment, dataset.seed, dataset.draft)
