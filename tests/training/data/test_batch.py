"""Batches equal to the predictors' input, and a sampler whose batches depend on the step alone."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.open_shapes import open_shapes, sampler
from training.data.batch import (
    collate_train,
    orientations,
    permutation,
)
from training.data.sample import IGNORE, Sample
from upsnet.geometry import collate, to_network
from upsnet.photos import read_photo


def flat_sample(height: int, width: int, things: int) -> Sample:
    return Sample(
        image=torch.full((3, height, width), 9, dtype=torch.uint8),
        semantic=torch.full((height, width), 1, dtype=torch.uint8),
        instances=torch.full((height, width), things, dtype=torch.int16),
        boxes=torch.tensor([[0.0, 0.0, width, height]] * things).reshape(things, 4),
        labels=torch.zeros(things, dtype=torch.int64),
        image_id=height,
        size=(height, width),
        scale=0.5,
        seed=height,
    )


def test_padding_by_hand() -> None:
    batch = collate_train([flat_sample(3, 5, 2), flat_sample(9, 4, 0)], divisor=8)
    assert batch.images.shape == (2, 16, 8, 3) and batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
    assert batch.images.sum(dtype=torch.int64) == 9 * 3 * (3 * 5 + 9 * 4)
    assert (batch.images[0, :3, :5] == 9).all() and (batch.images[1, :9, :4] == 9).all()
    assert batch.sizes.tolist() == [[3, 5], [9, 4]] and batch.sizes.dtype == torch.int32
    assert batch.scales.tolist() == [0.5, 0.5] and batch.scales.dtype == torch.float32
    assert (batch.semantic[0, :3, :5] == 1).all() and (batch.semantic == 1).sum() == 15 + 36
    assert set(batch.semantic.unique().tolist()) == {1, IGNORE}
    assert batch.instances.shape == (2, 16, 8) and batch.instances.dtype == torch.int16
    assert batch.instances[0].sum() == 2 * 15 and not batch.instances[1].any() and batch.seeds.tolist() == [3, 9]
    assert [tuple(b.shape) for b in batch.boxes] == [(2, 4), (0, 4)]
    assert batch.image_ids == [3, 9]


def test_a_small_image_alone_has_two_places_on_the_coarsest_level() -> None:
    """Batch normalisation cannot train on one value; all others are padded as ever."""
    sizes = {1: (32, 64), 32: (32, 64), 33: (64, 64)}
    for side, padded in sizes.items():
        batch = collate_train([flat_sample(side, side, 1)])
        assert batch.images.shape == (1, *padded, 3) and batch.sizes.tolist() == [[side, side]]
        assert (batch.semantic == 1).sum() == side * side and not batch.images[0, :, side:].any()
    assert collate_train([flat_sample(9, 9, 0), flat_sample(5, 5, 0)]).images.shape == (2, 32, 32, 3)


def test_images_are_the_predictors_input(shapes_folder: Path) -> None:
    dataset = open_shapes(shapes_folder)
    batch = collate_train([dataset[i] for i in range(5)])
    photos = [read_photo(dataset.records[i].photo) for i in range(5)]
    images, sizes, scales = collate([to_network(photo, dataset.rule) for photo in photos])
    off = abs(batch.images.numpy().astype(int) - images)
    assert off.max() <= 1 and (off > 0).mean() < 0.03, "resized by PyTorch, not by Pillow"
    assert np.array_equal(batch.sizes, sizes)
    assert np.array_equal(batch.scales, scales)


def test_images_may_lie_in_memory_in_any_order() -> None:
    sample = flat_sample(6, 4, 0)
    sample["image"] = torch.arange(72, dtype=torch.uint8).reshape(6, 4, 3).permute(2, 0, 1)
    other = {**sample, "image": sample["image"].contiguous()}
    first, second = (collate_train([s], divisor=4).images for s in (sample, other))  # type: ignore[list-item]
    assert torch.equal(first, second) and first.is_contiguous() and first[0, 5, 3].tolist() == [69, 70, 71]


def test_to_a_device_moves_everything() -> None:
    batch = collate_train([flat_sample(4, 4, 1)]).to("meta")
    maps = [batch.images, batch.semantic, batch.instances]
    tensors = [*maps, batch.sizes, batch.scales, batch.seeds, *batch.boxes, *batch.labels]
    assert {t.device.type for t in tensors} == {"meta"} and batch.image_ids == [4]


def test_sampler_known_answers() -> None:
    assert permutation(0, 0, 5).tolist() == [3, 2, 1, 0, 4]
    assert permutation(0, 1, 5).tolist() == [4, 1, 2, 0, 3]
    batches = [[(0, 3), (0, 2)], [(0, 1), (0, 0)], [(0, 4), (1, 4)], [(1, 1), (1, 2)]]
    assert list(sampler(5, 2, 4)) == batches
    assert list(sampler(5, 2, 4, first_step=2)) == batches[2:]
    assert list(sampler(5, 2, 4, rank=1, world=2)) == [[(0, 2)], [(0, 0)], [(1, 4)], [(1, 2)]]


@given(
    size=st.integers(1, 20),
    share=st.integers(1, 5),
    world=st.integers(1, 4),
    first=st.integers(0, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_sampler_properties(size: int, share: int, world: int, first: int, seed: int) -> None:
    steps, total = 12, share * world
    whole = list(sampler(size, total, steps, seed))
    assert len(whole) == steps
    row = [pair for batch in whole for pair in batch]
    for epoch in range(len(row) // size):  # every epoch is a permutation, without gaps
        part = row[epoch * size : (epoch + 1) * size]
        assert {draw for draw, _ in part} == {epoch} and sorted(i for _, i in part) == list(range(size))
    assert list(sampler(size, total, steps, seed, first_step=first)) == whole[first:]
    ranks = [sampler(size, total, steps, seed, rank=rank, world=world) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


def test_passes_share_a_step_in_order() -> None:
    whole = list(sampler(5, 4, 3))
    assert list(sampler(5, 4, 3, passes=2)) == [part for batch in whole for part in (batch[:2], batch[2:])]
    second = sampler(5, 4, 3, first_step=1, rank=1, world=2, passes=2)
    assert list(second) == [[pair] for batch in whole[1:] for pair in batch[2:]]


def test_groups_known_answer() -> None:
    """The row: 3 2 1 0 4 | 4 1 2 0 3 | ...; 0 and 3 are portraits. Landscapes 2 1, portraits 3 0, then 4 4, ..."""
    groups = orientations(np.array([[9, 5], [5, 9], [5, 5], [6, 5], [5, 6]], np.int32))
    assert groups == [1, 0, 0, 1, 0]
    expected = [[(0, 2), (0, 1)], [(0, 3), (0, 0)], [(0, 4), (1, 4)], [(1, 1), (1, 2)], [(1, 0), (1, 3)]]
    assert list(sampler(groups, 2, 5)) == expected
    assert list(sampler(groups, 2, 5, first_step=3)) == expected[3:]


@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    share=st.integers(1, 5),
    world=st.integers(1, 3),
    passes=st.integers(1, 2),
    first=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_groups_properties(groups: list[int], share: int, world: int, passes: int, first: int, seed: int) -> None:
    size, steps, total = len(groups), 12, share * world * passes
    whole = list(sampler(groups, total, steps, seed))
    assert all(len(batch) == total and len({groups[index] for _, index in batch}) == 1 for batch in whole)
    for kind in set(groups):  # every group walks through its own part of every permutation, without gaps
        members = [index for index in range(size) if groups[index] == kind]
        row = [pair for batch in whole if groups[batch[0][1]] == kind for pair in batch]
        for epoch in range(-(-len(row) // len(members))):
            order = [index for index in permutation(seed, epoch, size).tolist() if index in members]
            part = row[epoch * len(members) : (epoch + 1) * len(members)]
            assert part == [(epoch, index) for index in order[: len(part)]]
    seen = size + len(set(groups)) * total  # images that wait for their batch are fewer than one batch a group
    assert all(abs(draw * size - step * total) <= seen for step, batch in enumerate(whole) for draw, _ in batch[-1:])
    ranks = [
        sampler(groups, total, steps, seed, world=world, passes=passes, rank=rank, first_step=first)
        for rank in range(world)
    ]
    rows = [np.array(list(chain(*rank))).reshape(-1, share * passes, 2) for rank in ranks]  # by step
    assert np.array_equal(np.concatenate(rows, axis=1), np.array(whole[first:]).reshape(-1, total, 2))


def test_seeds_and_epochs_differ() -> None:
    orders = [permutation(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
