"""Dealing groups of images out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upsnet.datasets.splitting.stratify import stratify


def test_every_class_of_two_groups_is_on_both_sides() -> None:
    counts = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], *[[0, 0, 1]] * 16])
    for seed in range(20):
        sides = stratify(counts, np.ones(20, int), [16, 4], seed)
        assert np.bincount(sides).tolist() == [16, 4]
        assert sides[0] != sides[1] and sides[2] != sides[3]
        assert (sides[4:] == 1).sum() == 2


def test_three_sides() -> None:
    counts = np.repeat(np.eye(4, dtype=int), [10, 3, 2, 1], axis=0)
    sides = stratify(counts, np.ones(16, int), [10, 3, 3])
    of_class = [sorted(sides[counts[:, label] > 0].tolist()) for label in range(4)]
    assert of_class[1:] == [[0, 1, 2], [0, 1], [0]]  # few: training first, then val
    assert np.bincount(sides).tolist() == [10, 3, 3]


def test_shares_of_many_classes() -> None:
    """A random deal of 2000 images leaves a class of 40 with 2 to 15 of them on the side that wants 8."""
    random = np.random.default_rng(0)
    frequency = np.geomspace(0.5, 0.002, 60)
    counts = (random.random((2000, 60)) < frequency).astype(int)
    sides = stratify(counts, np.ones(2000, int), [1600, 400], 1)
    totals, val = counts.sum(axis=0), counts[sides == 1].sum(axis=0)
    assert np.bincount(sides).tolist() == [1600, 400]
    assert np.all(abs(val - 0.2 * totals) <= 1 + 0.03 * totals)


def test_many_rare_classes() -> None:
    """Of each class two to four groups, among 400: all are on both sides, which keep their sizes."""
    random = np.random.default_rng(0)
    counts = np.zeros((400, 120), int)
    for label in range(120):
        counts[random.choice(400, 2 + label % 3, replace=False), label] = 1
    sides = stratify(counts, np.ones(400, int), [320, 80])
    assert np.bincount(sides).tolist() == [320, 80]
    assert all(counts[sides == side].any(axis=0).all() for side in (0, 1))


def test_two_classes_that_only_an_exchange_brings_to_both_sides() -> None:
    """Photo 0 alone has both classes of two photos; with 1 and 2 on the other side all is well."""
    counts = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]])
    for seed in range(20):
        sides = stratify(counts, np.ones(4, int), [3, 1], seed)
        assert np.flatnonzero(sides == 1).tolist() == [0]


def test_a_group_larger_than_a_side_stays_where_there_is_room() -> None:
    counts, sizes = np.array([[90], [1], [1], *[[1]] * 8]), np.array([90, 1, 1, *[1] * 8])
    sides = stratify(counts, sizes, [80, 20])
    assert sides[0] == 0 and (sides == 1).sum() == 10


def test_each_side_has_a_group_whatever_their_sizes() -> None:
    sides = stratify(np.array([[50], [50], [1]]), np.array([50, 50, 1]), [97, 3, 1])
    assert sorted(sides.tolist()) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6), st.integers(2, 3))
def test_sides_have_their_sizes(seed: int, images: int, classes: int, sides: int) -> None:
    random = np.random.default_rng(seed)
    counts = (random.random((images, classes)) < random.random(classes)).astype(int)
    sizes = np.ones(images, int)
    if images < sides:
        return
    targets = [images - (sides - 1) * (images // sides), *[images // sides] * (sides - 1)]
    dealt = stratify(counts, sizes, targets, seed)
    found = np.bincount(dealt, minlength=sides)
    assert np.all(abs(found - targets) <= np.floor(0.05 * np.array(targets))) and found.min() >= 1
    assert np.array_equal(dealt, stratify(counts, sizes, targets, seed))
    held = np.array([(counts[dealt == side] > 0).any(axis=0) for side in range(sides)])
    assert np.all(held[0] | ~held.any(axis=0) | (counts.sum(axis=0) < sides) | (targets[0] < classes))


@pytest.mark.parametrize("seed", [0, 1])
def test_without_any_class_the_images_are_dealt_out(seed: int) -> None:
    sides = stratify(np.zeros((10, 3), int), np.ones(10, int), [7, 3], seed)
    assert np.bincount(sides).tolist() == [7, 3]
