"""Runs of a map: by hand, against masks, and back to the map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from upsnet.run_lengths import areas_and_boxes, connected, find_runs, measure_runs, paint


def test_runs_by_hand() -> None:
    runs = find_runs(np.array([[7, 7, 5], [5, 5, 5], [0, 7, 0]], np.int32))
    assert runs.values.tolist() == [7, 5, 5, 0, 7, 0] and runs.values.dtype == np.int32
    assert runs.starts.tolist() == [0, 2, 3, 6, 7, 8]
    assert runs.lengths.tolist() == [2, 1, 3, 1, 1, 1] and runs.shape == (3, 3)
    measured = measure_runs(runs)
    assert measured.ids.tolist() == [0, 5, 7] and measured.areas.tolist() == [2, 4, 3]
    assert measured.boxes.tolist() == [[0, 2, 3, 1], [0, 0, 3, 2], [0, 0, 2, 3]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_one_row_and_one_column(shape: tuple[int, int]) -> None:
    measured = measure_runs(find_runs(np.full(shape, 9)))
    assert measured.ids.tolist() == [9] and measured.areas.tolist() == [shape[0] * shape[1]]
    assert measured.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_any_map_against_masks(height: int, width: int, values: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, values, (height, width))
    runs = find_runs(ids)
    assert np.array_equal(paint(runs, runs.values), ids)
    found = areas_and_boxes(ids)
    assert list(found) == np.unique(ids).tolist()
    for id, (area, box) in found.items():
        rows, columns = np.nonzero(ids == id)
        assert area == len(rows)
        assert box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_connected_pieces_against_scipy(height: int, width: int, values: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, values, (height, width))
    runs = find_runs(ids)
    pieces = paint(runs, connected(runs))
    count = 0
    for id in np.unique(ids):
        labels, found = ndimage.label(ids == id, np.ones((3, 3)))
        count += found
        for number in range(1, found + 1):
            assert len(np.unique(pieces[labels == number])) == 1
    assert np.array_equal(np.unique(pieces), np.arange(count))
