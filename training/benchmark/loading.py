"""The training set's batches as the loop sees them, and how many images a second the loader alone brings."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.benchmark.parts import REST, Stopwatch
from training.config import Config
from training.data import coco_panoptic
from training.data.batch import Batch, StepSampler, collate_train, permutation
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import make_loader, reading
from training.data.open import make_sampler
from training.data.transforms import Augment
from training.schedule import make_plan
from upsnet.datasets import folder
from upsnet.datasets.places import read_file, together
from upsnet.datasets.shards.write import write_shards

TURNS = 7  # of each, folders and shards
BEST_OF = 3  # turns: other jobs on the machine can only slow one down
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
    return make_loader(dataset, _keys(dataset, config, batches), workers, device.type == "cuda")


def _keys(dataset: PanopticDataset, config: Config, batches: int) -> StepSampler:
    plan = make_plan(config.schedule, 1).model_copy(update={"iterations": batches})
    return make_sampler(dataset, config, plan)


def take_batches(dataset: PanopticDataset, config: Config, count: int, device: torch.device) -> list[Batch]:
    """The first `count` batches, kept in memory."""
    with reading(open_loader(dataset, config, count, 0, device)) as batches:
        return list(tqdm(batches, desc="batches", total=count, unit="batch", disable=None))


def loader_rates(
    dataset: PanopticDataset, config: Config, workers: Sequence[int], batches: int, device: torch.device
) -> list[Rate]:
    """For each number of workers the best of BEST_OF turns over `batches` batches."""
    turns = [[loader_rate(dataset, config, count, batches, device) for count in workers] for _ in range(BEST_OF)]
    return [max(rates, key=lambda rate: rate.images_per_s) for rates in zip(*turns, strict=True)]


def loader_rate(dataset: PanopticDataset, config: Config, workers: int, batches: int, device: torch.device) -> Rate:
    """Over `batches` batches. What came before every worker had delivered its first batch does not count."""
    warm_up = max(1, workers)
    with reading(open_loader(dataset, config, batches + warm_up, workers, device)) as loader:
        for _ in islice(loader, warm_up):
            pass
        start = time.perf_counter()
        bar = tqdm(loader, f"{workers} workers", batches, unit="batch", disable=None)
        images = sum(len(batch.images) for batch in bar)
        seconds = time.perf_counter() - start
    return Rate(workers, images, seconds, images / seconds)


def core_parts(dataset: PanopticDataset, config: Config, batches: int) -> dict[str, float]:
    """Where a core's milliseconds for an image go, most first: the turn of least sum, of BEST_OF over `batches`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        turns = [_parts_once(dataset, config, batches) for _ in range(BEST_OF)]
    finally:
        torch.set_num_threads(threads)
    best = min(turns, key=lambda parts: sum(parts.values()))
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def _parts_once(dataset: PanopticDataset, config: Config, batches: int) -> dict[str, float]:
    watch = Stopwatch(torch.device("cpu"), time.process_time)
    watched: list[tuple[Any, str, str]] = [
        (folder, "read_turned", "photo: read, decoded"),
        (folder, "read_panoptic_png", "PNG: read, decoded"),
        (folder, "areas_and_boxes", "PNG against JSON"),
        (coco_panoptic, "resize_photo", "photo resized"),
        (coco_panoptic, "to_original", "PNG resized"),
        (Augment, "apply", "window, flip, colours"),
        (PanopticDataset, "_sample", "truth"),
        (coco_panoptic, "paste_things", "things pasted"),
    ]
    images = 0
    with ExitStack() as stack:
        for owner, method, name in watched:
            stack.enter_context(watch.watch(owner, method, name))
        for keys in _keys(dataset, config, batches):
            with watch.part(REST):
                samples = [dataset[key] for key in keys]
            with watch.part("collated"):
                batch = collate_train(samples, dataset.rule.divisor)
            with watch.part("sent to the loop"):
                sent = ForkingPickler.dumps(batch)
            with watch.part("received by the loop"):
                pickle.loads(sent)
            images += len(keys)
    return {name: 1e3 * seconds / images for name, seconds in watch.seconds().items()}


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
            rates.append(loader_rate(dataset, config, workers, batches, device).images_per_s)
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
