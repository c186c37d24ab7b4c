"""Are two panoptic maps the same, pixel by pixel, whatever numbers their segments carry?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from upsnet.errors import InputError
from upsnet.result import PanopticResult

BAND_PIXELS = 1 << 20  # that are looked at in one go


def identical_pixels(a: PanopticResult, b: PanopticResult) -> np.ndarray:
    """bool H x W: where two results of one image say the same.

    A pixel is identical when both maps call it void, or when both give it the same category and the two segments
    it lies in correspond: they cover each other with IoU > 0.5, which at most one pair of segments can (PQ's own
    matching rule; Kirillov et al., CVPR 2019). Segment numbers, their order and their scores play no part.
    """
    pairs = _Pairs(a, b)
    same = pairs.same.ravel()
    found = np.empty(a.ids.shape, bool)
    for band in pairs.bands():
        found[band] = same[pairs.of(band)]
    return found


def identical_counts(a: PanopticResult, b: PanopticResult, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """int64, classes + 1 each: pixels of a by contiguous category, void last, and how many of them are identical.

    As `identical_pixels` has it, without a map of them: a large photo takes little memory beside its two results.
    """
    pairs = _Pairs(a, b)
    pixels, identical = np.zeros((2, classes + 1), np.int64)
    np.add.at(pixels, pairs.categories, pairs.common.sum(1))  # -1, void, is the last
    np.add.at(identical, pairs.categories, (pairs.common * pairs.same).sum(1))
    return pixels, identical


def category_map(result: PanopticResult) -> np.ndarray:
    """int64 H x W: contiguous category of each pixel, -1 where void."""
    rows, categories = _rows(result)
    return categories[rows[result.ids]]


class _Pairs:
    """The rows of two results (0: void, else 1 + the segment's position) that meet at each pixel.

    Band by band: a large photo takes little memory beside its two results.
    """

    def __init__(self, a: PanopticResult, b: PanopticResult) -> None:
        if a.ids.shape != b.ids.shape:
            raise InputError(f"two predictions of one image differ in size: {a.ids.shape} and {b.ids.shape}")
        self._ids = a.ids, b.ids
        (rows_a, self.categories), (rows_b, categories_b) = _rows(a), _rows(b)
        self._tables = rows_a * len(categories_b), rows_b
        counts = np.zeros(len(self.categories) * len(categories_b), np.int64)
        for band in self.bands():
            counts += np.bincount(self.of(band).ravel(), minlength=len(counts))
        self.common = counts.reshape(len(self.categories), -1)  # pixels of each pair
        self.same = _same(self.common, self.categories, categories_b)

    def bands(self) -> Iterator[slice]:
        """Rows of pixels, BAND_PIXELS or so at a time."""
        height, width = self._ids[0].shape
        step = max(1, BAND_PIXELS // max(1, width))
        return (slice(start, start + step) for start in range(0, height, step))

    def of(self, band: slice) -> np.ndarray:
        """int64: the pair of each pixel, a place in `same.ravel()`."""
        (ids_a, ids_b), (table_a, table_b) = self._ids, self._tables
        return table_a[ids_a[band]] + table_b[ids_b[band]]


def _rows(result: PanopticResult) -> tuple[np.ndarray, np.ndarray]:
    """Of each id, 1 + its position in result.segments (0 = void), and each row's category (void: -1)."""
    ids = np.asarray([segment.id for segment in result.segments], np.int64)
    table = np.zeros(1 + max(ids.max(initial=0), result.ids.max(initial=0)), np.int64)
    table[ids] = 1 + np.arange(len(ids))
    return table, np.asarray([-1] + [segment.category for segment in result.segments], np.int64)


def _same(common: np.ndarray, categories_a: np.ndarray, categories_b: np.ndarray) -> np.ndarray:
    """bool: the pairs of rows that say the same, of the pixels that each pair has in common."""
    union = common.sum(1, keepdims=True) + common.sum(0, keepdims=True) - common
    same = (categories_a[:, None] == categories_b[None]) & (2 * common > union)
    same[0, 0] = True
    return same
