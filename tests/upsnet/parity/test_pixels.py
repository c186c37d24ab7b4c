from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upsnet.errors import InputError
from upsnet.parity import pixels as module
from upsnet.parity.pixels import category_map, identical_counts, identical_pixels
from upsnet.result import PanopticResult, Segment


def result(ids: list[list[int]] | np.ndarray, categories: dict[int, int]) -> PanopticResult:
    ids = np.asarray(ids, np.int32)
    return PanopticResult(ids, [Segment(id, category, 1.0, 0, (0, 0, 0, 0)) for id, category in categories.items()])


def test_numbering_order_and_scores_play_no_part() -> None:
    a = result([[1, 1, 2], [0, 3, 3]], {1: 0, 2: 5, 3: 5})
    b = result([[9, 9, 4], [0, 2, 2]], {4: 5, 2: 5, 9: 0})
    assert identical_pixels(a, b).all()


def test_two_instances_swapped_in_part_differ_only_there() -> None:
    a = result([[1, 1, 1, 1, 2, 2, 2, 2]], {1: 5, 2: 5})
    b = result([[1, 1, 1, 2, 2, 2, 2, 2]], {1: 5, 2: 5})
    assert identical_pixels(a, b).tolist() == [[True, True, True, False, True, True, True, True]]


def test_a_segment_cut_in_equal_halves_corresponds_to_neither() -> None:
    a = result([[1, 1, 1, 1]], {1: 5})
    b = result([[1, 1, 2, 2]], {1: 5, 2: 5})
    assert not identical_pixels(a, b).any()  # IoU is .5 exactly, and must be more


def test_another_category_or_void_differs() -> None:
    a = result([[1, 1, 0, 0]], {1: 5})
    assert identical_pixels(a, result([[1, 1, 0, 0]], {1: 6})).tolist() == [[False, False, True, True]]
    assert identical_pixels(a, result([[0, 0, 0, 0]], {})).tolist() == [[False, False, True, True]]


def test_nothing_at_all_is_identical_and_sizes_must_agree() -> None:
    empty = result([[0, 0]], {})
    assert identical_pixels(empty, empty).all()
    with pytest.raises(InputError, match="differ in size"):
        identical_pixels(empty, result([[0], [0]], {}))


def test_counts_by_class_are_those_of_the_map_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAND_PIXELS", 20)  # bands of two rows, the last of one
    rng = np.random.default_rng(3)
    table = {1: 0, 2: 1, 3: 1, 4: 2}
    a = result(np.repeat(rng.integers(0, 5, (9, 5)), 2, axis=1), table)
    b = result(np.where(rng.random((9, 10)) < 0.2, 0, a.ids), table)
    same, category = identical_pixels(a, b), category_map(a)
    pixels, identical = identical_counts(a, b, 3)
    assert pixels.tolist() == [int((category == each).sum()) for each in (0, 1, 2, -1)]
    assert identical.tolist() == [int(same[category == each].sum()) for each in (0, 1, 2, -1)]
    assert 0 < identical.sum() < pixels.sum() == 90
    with pytest.raises(InputError, match="differ in size"):
        identical_counts(a, result([[0]], {}), 3)


def test_category_map() -> None:
    assert category_map(result([[0, 7, 2]], {7: 3, 2: 1})).tolist() == [[-1, 3, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.permutations([1, 2, 3]))
def test_symmetric_reflexive_and_against_the_definition(pixels: list[tuple[int, int]], names: list[int]) -> None:
    table = {1: 0, 2: 1, 3: 1}
    a, b = np.array([pixels]).transpose(2, 0, 1)
    one, other = result(a, table), result(b, table)
    same = identical_pixels(one, other)
    assert identical_pixels(one, one).all()
    assert (same == identical_pixels(other, one)).all()
    renamed = result(np.array([0, *names])[b], {names[i]: table[i + 1] for i in range(3)})
    assert (same == identical_pixels(one, renamed)).all()
    for x, y, equal in zip(a[0], b[0], same[0], strict=True):
        inside, outside = ((a == x) & (b == y)).sum(), ((a == x) | (b == y)).sum()
        expected = x == y == 0 if 0 in (x, y) else table[x] == table[y] and inside / outside > 0.5
        assert equal == expected
