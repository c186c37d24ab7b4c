"""Are two panoptic maps the same, pixel by pixel, whatever numbers their segments carry?"""

from __future__ import annotations

import numpy as np

from upsnet.errors import InputError
from upsnet.result import PanopticResult


def identical_pixels(a: PanopticResult, b: PanopticResult) -> np.ndarray:
    """bool H x W: where two results of one image say the same.

    A pixel is identical when both maps call it void, or when both give it the same category and the two segments
    it lies in correspond: they cover each other with IoU > 0.5, which at most one pair of segments can (PQ's own
    matching rule; Kirillov et al., CVPR 2019). Segment numbers, their order and their scores play no part.
    """
    if a.ids.shape != b.ids.shape:
        raise InputError(f"two predictions of one image differ in size: {a.ids.shape} and {b.ids.shape}")
    rows_a, categories_a = _rows(a)
    rows_b, categories_b = _rows(b)
    pairs = rows_a * len(categories_b) + rows_b
    common = np.bincount(pairs.ravel(), minlength=len(categories_a) * len(categories_b))
    common = common.reshape(len(categories_a), len(categories_b))
    union = common.sum(1, keepdims=True) + common.sum(0, keepdims=True) - common
    same = (categories_a[:, None] == categories_b[None]) & (2 * common > union)
    same[0, 0] = True
    return same.ravel()[pairs]


def category_map(result: PanopticResult) -> np.ndarray:
    """int64 H x W: contiguous category of each pixel, -1 where void."""
    rows, categories = _rows(result)
    return categories[rows]


def _rows(result: PanopticResult) -> tuple[np.ndarray, np.ndarray]:
    """Map int64 H x W of 1 + position in result.segments (0 = void), and each row's category (void: -1)."""
    ids = np.asarray([segment.id for segment in result.segments], np.int64)
    table = np.zeros(1 + max(ids.max(initial=0), result.ids.max(initial=0)), np.int64)
    table[ids] = 1 + np.arange(len(ids))
    categories = np.asarray([-1] + [segment.category for segment in result.segments], np.int64)
    return table[result.ids], categories
