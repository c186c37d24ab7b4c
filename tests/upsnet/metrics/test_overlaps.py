from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upsnet.metrics.overlaps import LONGEST_RUN, VALUE_LIMIT, overlaps


def by_pixels(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    return dict(Counter(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)))


def as_dict(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    a, b, pixels = (column.tolist() for column in overlaps(first, second))
    pairs = list(zip(a, b, strict=True))
    assert pairs == sorted(set(pairs))
    return dict(zip(pairs, pixels, strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 9), st.sampled_from(["int32", "int64", "uint32"]))
@settings(max_examples=100, deadline=None)
def test_agrees_with_counting_pixels(seed: int, height: int, width: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    pool = np.array([0, 1, 255, 65536, VALUE_LIMIT - 1], dtype)
    first, second = rng.choice(pool, (2, height, width))
    assert as_dict(first, second) == by_pixels(first, second)


@pytest.mark.parametrize("pixels", [LONGEST_RUN - 1, LONGEST_RUN, LONGEST_RUN + 1, 3 * LONGEST_RUN + 5])
def test_runs_longer_than_their_field(pixels: int) -> None:
    assert as_dict(np.full((1, pixels), 7), np.full((1, pixels), 9)) == {(7, 9): pixels}


def test_other_layouts_and_types_of_the_two_maps() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, (2, 20, 30))
    assert as_dict(np.asfortranarray(first), second.astype(np.uint8)) == by_pixels(first, second)
    assert as_dict(first[::2, ::3], second[::2, ::3]) == by_pixels(first[::2, ::3], second[::2, ::3])


@pytest.mark.parametrize("bad", [-1, VALUE_LIMIT])
def test_values_outside_are_refused_on_either_side(bad: int) -> None:
    good, spoiled = np.zeros((4, 5), np.int64), np.zeros((4, 5), np.int64)
    spoiled[2, 3] = bad
    for maps in ((good, spoiled), (spoiled, good)):
        with pytest.raises(ValueError, match="values must lie in"):
            overlaps(*maps)
