"""From samples to batches, and which samples make the batch of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

if TYPE_CHECKING:
    from training.data.coco_panoptic import PanopticDataset

IGNORE = 255  # semantic label of void, crowds and padding


class Sample(TypedDict):
    """One image of h x w network pixels, not padded, with n instances."""

    image: Tensor  # uint8 3 x h x w, RGB
    semantic: Tensor  # uint8 h x w: contiguous category or IGNORE
    instances: Tensor  # int16 h x w: 0, or 1 + row in boxes; the visible pixels, which no two instances share
    boxes: Tensor  # float32 n x 4: x1, y1, x2, y2, tight, x2 and y2 exclusive
    labels: Tensor  # int64 n: thing index, 0 is the first thing
    image_id: int
    size: tuple[int, int]  # h, w
    scale: float  # network pixels for one original pixel
    seed: int  # of the random draws that the losses make for this image; from 0 up, below 2^63


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
    """Batches of (draw, index) for the steps first_step .. steps - 1 of rank `rank`.

    The steps walk through one endless row of permutations of the data set, one permutation an epoch; draw is the epoch.
    The global batch of a step depends on (size, images_per_step, seed, step) alone: a resumed run sees what an
    uninterrupted one would have seen, and the ranks share the batch in equal, consecutive parts.
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
    ) -> None:
        if size < 1 or images_per_step < 1 or seed < 0:
            raise ValueError(f"size {size}, images_per_step {images_per_step} (from 1 up) or seed {seed} (from 0 up)")
        if not 0 <= rank < world or images_per_step % world:
            raise ValueError(f"rank {rank} of {world}: {images_per_step} images a step cannot be shared equally")
        self.size, self.images_per_step, self.steps, self.seed = size, images_per_step, steps, seed
        self.first_step, self.rank, self.share = first_step, rank, images_per_step // world
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps):
            start = step * self.images_per_step + self.rank * self.share
            yield [self._at(place) for place in range(start, start + self.share)]

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def _at(self, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.seed, epoch, self.size)
        return epoch, int(self._order[offset])


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of 0..size-1, int64; from the raw bit stream, which numpy keeps the same in all versions."""
    raw = np.asarray(np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(size))
    return np.argsort(raw, kind="stable")


def make_loader(dataset: PanopticDataset, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """A loader of Batch over `sampler`. The global random state of torch stays as it is."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(collate_train, divisor=dataset.rule.divisor),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(sampler.seed),
    )
