"""A map of ids as horizontal runs: what is asked of every pixel costs one step a run, and images have few of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]  # x, y, width, height
Extents = dict[int, tuple[int, Box]]  # id -> pixels, tight box


class Runs(NamedTuple):
    """Stretches of equal value in an H x W map, row by row; none goes over the end of its row."""

    values: np.ndarray  # N, of the map's type
    starts: np.ndarray  # int64 N: index of the first pixel in the flattened map
    lengths: np.ndarray  # int64 N
    shape: tuple[int, int]  # H, W


class Measured(NamedTuple):
    """The ids of a map in rising order, with their pixel counts and tight boxes."""

    ids: np.ndarray  # n, of the map's type
    areas: np.ndarray  # int64 n
    boxes: np.ndarray  # int64 n x 4: x, y, width, height


def find_runs(ids: np.ndarray) -> Runs:
    """Cut an H x W map, not empty, into its runs."""
    height, width = ids.shape
    flat = ids.ravel()
    begins = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    return Runs(flat[starts], starts, np.diff(starts, append=flat.size), (height, width))


def paint(runs: Runs, values: np.ndarray) -> np.ndarray:
    """The H x W map that has values[i] in run i, of their type."""
    return np.repeat(values, runs.lengths).reshape(runs.shape)


def connected(runs: Runs) -> np.ndarray:
    """int64 N: of each run the number, from 0 on, of its piece: pixels of one value that touch, over corners too."""
    width, ends = runs.shape[1], runs.starts + runs.lengths
    row = runs.starts // width
    below = (row + 1) * width  # where the next row starts
    first = np.searchsorted(ends, np.maximum(runs.starts + width - 1, below), side="right")
    last = np.searchsorted(runs.starts, np.minimum(ends + width + 1, below + width), side="left")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(ends)), counts)
    lower = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
    same = runs.values[upper] == runs.values[lower]
    upper, lower = upper[same], lower[same]
    pieces = np.arange(len(ends))
    while True:
        least = np.minimum(pieces[upper], pieces[lower])
        after = pieces.copy()
        np.minimum.at(after, pieces[upper], least)
        np.minimum.at(after, pieces[lower], least)
        while not np.array_equal(after, after[after]):
            after = after[after]
        after = after[pieces]
        if np.array_equal(after, pieces):
            return np.unique(pieces, return_inverse=True)[1]
        pieces = after


def measure_runs(runs: Runs) -> Measured:
    """Area and box of every value, without a mask for each."""
    order = np.argsort(runs.values, kind="stable")
    values, lengths = runs.values[order], runs.lengths[order]
    y, x = np.divmod(runs.starts[order], runs.shape[1])
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    x1, x2 = np.minimum.reduceat(x, first), np.maximum.reduceat(x + lengths, first)
    y1, y2 = np.minimum.reduceat(y, first), np.maximum.reduceat(y, first) + 1
    return Measured(values[first], np.add.reduceat(lengths, first), np.stack([x1, y1, x2 - x1, y2 - y1], axis=1))


def areas_and_boxes(ids: np.ndarray) -> Extents:
    """Of every id in an H x W map, not empty, in rising order."""
    return extents(find_runs(ids))


def extents(runs: Runs) -> Extents:
    """`areas_and_boxes` of a map that was cut into its runs."""
    values, areas, boxes = (array.tolist() for array in measure_runs(runs))
    return dict(zip(values, zip(areas, map(tuple, boxes), strict=True), strict=True))
