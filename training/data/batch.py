"""From samples to batches, and which samples make the batch of a step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from training.data.sample import IGNORE, Sample
from training.model_config import TOP_STRIDE
from training.schedule import Plan


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
        def moved(value: object) -> object:
            if isinstance(value, list):
                return [moved(each) for each in value]
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return Batch._make(map(moved, self))


def collate_train(samples: Sequence[Sample], divisor: int = 32) -> Batch:
    """Pad to the largest height and width among the samples, up to multiples of `divisor`; an image alone that is one
    place of the coarsest features is padded to two, as the mean and variance of a batch need more than one value."""
    height, width = (-(-max(s["size"][axis] for s in samples) // divisor) * divisor for axis in (0, 1))
    if len(samples) * height * width == TOP_STRIDE * TOP_STRIDE:
        width *= 2

    def pad(tensors: list[Tensor], value: int = 0) -> Tensor:
        padded = empty_to_send(tensors[0], (len(tensors), height, width, *tensors[0].shape[2:]))
        for row, tensor in zip(padded, tensors, strict=True):
            row[: tensor.shape[0], : tensor.shape[1]] = tensor
            row[tensor.shape[0] :] = value
            row[: tensor.shape[0], tensor.shape[1] :] = value
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


def empty_to_send(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of the type of `like`; in a loader's worker in memory that it shares with the loop, where PyTorch's own collating
    puts a batch, too, and else it would be copied to. MemoryError where there is none."""
    if not get_worker_info():
        return like.new_empty(shape)
    try:
        storage = torch.UntypedStorage._new_shared(like.element_size() * math.prod(shape))
    except RuntimeError as error:
        raise MemoryError(str(error)) from error
    return like.new_empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (draw, index), one for each forward pass of process `rank` in the plan's steps from `first_step` on.

    The images come from one endless row of permutations of the data set, one permutation an epoch; draw is the epoch.
    groups: an integer for each image, as `orientations` gives. An image waits in its group until a step's images have
    come together there; that is the next step. So all images of a step are of one group. The global batch of a step
    depends on (groups, images_per_step, seed, step) alone: a resumed run sees what an uninterrupted one would have
    seen. The processes share it in equal, consecutive parts, and each process its part in forward passes, so their
    numbers do not change it either.
    """

    def __init__(self, groups: Sequence[int], plan: Plan, seed: int = 0, rank: int = 0, first_step: int = 0) -> None:
        self.groups, self.plan, self.seed, self.rank, self.first_step = groups, plan, seed, rank, first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        at_once, share = self.plan.images_per_gpu, self.plan.images_per_gpu * self.plan.passes
        for batch in islice(self._global_batches(), self.first_step, self.plan.iterations):
            for start in range(self.rank * share, (self.rank + 1) * share, at_once):
                yield batch[start : start + at_once]

    def _global_batches(self) -> Iterator[list[tuple[int, int]]]:
        """The (draw, index) of all processes' images in each step, without end."""
        waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for epoch in count():
            for index in permutation(self.seed, epoch, len(self.groups)).tolist():
                group = self.groups[index]
                waiting[group].append((epoch, index))
                if len(waiting[group]) == self.plan.images_per_step:
                    yield waiting.pop(group)


def orientations(sizes: np.ndarray) -> list[int]:
    """N x 2 heights and widths -> 1 for portraits, 0 for landscapes and squares: groups of a StepSampler."""
    return (sizes[:, 0] > sizes[:, 1]).astype(int).tolist()


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of 0..size-1, int64; from the raw bit stream, which numpy keeps the same in all versions."""
    raw = np.asarray(np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(size))
    return np.argsort(raw, kind="stable")
