"""From samples to batches, and which samples make the batch of a step."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from training.data.coco_panoptic import PanopticDataset
from training.data.sample import IGNORE, Sample
from training.signals import ignore_stop_signals
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError


class Batch(NamedTuple):
    """B samples, zero-padded right and bottom to one H x W: images, sizes, scales are the exported graph's inputs."""

    images: Tensor  # uint8 B x H x W x 3
    sizes: Tensor  # int32 B x 2
    scales: Tensor  # float32 B
    semantic: Tensor  # uint8 B x H x W, IGNORE in the padding
    instances: Tensor  # int16 B x H x W: 0, or 1 + row in the image's boxes
    boxes: list[Tensor]  # float32 n x 4 each
    labels: list[Tensor]  # int64 n each
    seeds: Tensor  # int64 B: of the losses' random draws, a function of (run's seed, draw, index) alone
    image_ids: list[int]

    def to(self, device: torch.device | str) -> Batch:
        def move(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        images, sizes, scales, seeds = move([self.images, self.sizes, self.scales, self.seeds])
        semantic, instances = move([self.semantic, self.instances])
        boxes, labels = move(self.boxes), move(self.labels)
        return Batch(images, sizes, scales, semantic, instances, boxes, labels, seeds, self.image_ids)


def collate_train(samples: Sequence[Sample], divisor: int = 32) -> Batch:
    """Pad to the largest height and width among the samples, up to multiples of `divisor`."""
    height, width = (-(-max(s["size"][axis] for s in samples) // divisor) * divisor for axis in (0, 1))

    def pad(tensors: list[Tensor], value: int = 0) -> Tensor:
        padded = tensors[0].new_full((len(tensors), height, width, *tensors[0].shape[2:]), value)
        for row, tensor in zip(padded, tensors, strict=True):
            row[: tensor.shape[0], : tensor.shape[1]] = tensor
        return padded

    return Batch(
        images=pad([s["image"].permute(1, 2, 0) for s in samples]),
        sizes=torch.tensor([s["size"] for s in samples], dtype=torch.int32),
        scales=torch.tensor([s["scale"] for s in samples], dtype=torch.float32),
        semantic=pad([s["semantic"] for s in samples], IGNORE),
        instances=pad([s["instances"] for s in samples]),
        boxes=[s["boxes"] for s in samples],
        labels=[s["labels"] for s in samples],
        seeds=torch.tensor([s["seed"] for s in samples], dtype=torch.int64),
        image_ids=[s["image_id"] for s in samples],
    )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (draw, index), one for each forward pass of process `rank` in the steps first_step .. steps - 1.

    The images come from one endless row of permutations of the data set, one permutation an epoch; draw is the epoch.
    The global batch of a step depends on (groups, images_per_step, seed, step) alone: a resumed run sees what an
    uninterrupted one would have seen. The ranks share it in equal, consecutive parts, and each its part in `passes`
    forward passes, so these numbers do not change it either.

    groups: an integer for each of the `size` images, as `orientations` gives; all images of a step are of one group.
    Every group fills batches of its own in the order of the row, and a batch's step comes when its last image comes up.
    So each epoch is a permutation within every group, and what is left at its end waits for the group's next images.
    """

    def __init__(
        self,
        size: int,
        images_per_step: int,
        steps: int,
        seed: int = 0,
        *,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        passes: int = 1,
        groups: np.ndarray | None = None,
    ) -> None:
        if size < 1 or images_per_step < 1 or seed < 0:
            raise ValueError(f"size {size}, images_per_step {images_per_step} (from 1 up) or seed {seed} (from 0 up)")
        if not 0 <= rank < world or images_per_step % (world * passes):
            raise ValueError(
                f"rank {rank} of {world}, {passes} passes: {images_per_step} images a step cannot be shared equally"
            )
        self.size, self.images_per_step, self.steps, self.seed = size, images_per_step, steps, seed
        self.first_step, self.rank = first_step, rank
        self.share, self.at_once = images_per_step // world, images_per_step // world // passes
        groups = np.zeros(size, np.int64) if groups is None else groups
        _, self.groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
        self.counts: list[int] = counts.tolist()
        self._epoch = lru_cache(maxsize=8)(self._draw)
        self._batches = lru_cache(maxsize=2)(self._completed)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps):
            batch = self.batch(step)
            for start in range(self.rank * self.share, (self.rank + 1) * self.share, self.at_once):
                yield batch[start : start + self.at_once]

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step) * (self.share // self.at_once)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (draw, index) of all processes in that step."""
        most = (step + len(self.counts)) * self.images_per_step // self.size + 2  # epochs that surely go beyond it
        epoch = bisect_right(range(most), step, key=self._complete) - 1
        group, number = self._batches(epoch)[step - self._complete(epoch)]
        images = range(number * self.images_per_step, (number + 1) * self.images_per_step)
        return [self._image(group, place) for place in images]

    def _complete(self, epochs: int) -> int:
        """How many batches are complete after that many epochs."""
        return sum(epochs * count // self.images_per_step for count in self.counts)

    def _completed(self, epoch: int) -> list[tuple[int, int]]:
        """The (group, number among the group's) of the batches that an epoch completes, in their order."""
        ends: list[tuple[int, int, int]] = []
        for group, (count, (_, places)) in enumerate(zip(self.counts, self._epoch(epoch), strict=True)):
            first, end = (e * count // self.images_per_step for e in (epoch, epoch + 1))
            last = np.arange(first + 1, end + 1) * self.images_per_step - 1 - epoch * count
            ends += [(place, group, first + i) for i, place in enumerate(places[last].tolist())]
        return [(group, number) for _, group, number in sorted(ends)]

    def _image(self, group: int, number: int) -> tuple[int, int]:
        """(draw, index) of a group's image `number`, counted through all epochs."""
        epoch, offset = divmod(number, self.counts[group])
        return epoch, int(self._epoch(epoch)[group][0][offset])

    def _draw(self, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """An epoch's permutation by group: its images in order, and their places in the whole."""
        order = permutation(self.seed, epoch, self.size)
        places = [np.flatnonzero(self.groups[order] == group) for group in range(len(self.counts))]
        return [(order[chosen], chosen) for chosen in places]


def orientations(sizes: np.ndarray) -> np.ndarray:
    """N x 2 heights and widths -> 1 for portraits, 0 for landscapes and squares: groups of a StepSampler."""
    return (sizes[:, 0] > sizes[:, 1]).astype(np.int64)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of 0..size-1, int64; from the raw bit stream, which numpy keeps the same in all versions."""
    raw = np.asarray(np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(size))
    return np.argsort(raw, kind="stable")


def fit_workers(wanted: int) -> int:
    """At most as many loader workers as this process has cores, which torchrun's processes on a machine share alike;
    at least one where any is wanted. Their number changes no batch."""
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(wanted, max(1, cores))


def make_loader(dataset: PanopticDataset, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """A loader of Batch, one for each forward pass, over `sampler`. The global random state of torch stays as it is.

    Images of one forward pass are padded to the largest of them, so several processes may pad to different sizes.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(collate_train, divisor=dataset.rule.divisor),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator().manual_seed(sampler.seed),
    )


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[Batch]]:
    """The loader's batches. InputError, in one line, where one of its workers finds a faulty image.

    The workers end with it. Python would wait for them for ever where an error's traceback still holds the loader: they
    ignore the SIGTERM by which it ends them.
    """
    batches = iter(loader)
    try:
        yield batches
    except InputError as error:  # a worker's begins with its traceback
        raise InputError(str(error).splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")) from None
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]
