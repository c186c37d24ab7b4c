"""A panoptic result at the photo's size, and how the network's three outputs become one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from upsnet.errors import InputError
from upsnet.geometry import NetworkImage, to_original


class Segment(NamedTuple):
    """One segment of a result. Areas and boxes are in original pixels."""

    id: int  # value in PanopticResult.ids
    category: int  # contiguous
    score: float
    area: int
    bbox: tuple[int, int, int, int]  # x, y, width, height


class PanopticResult(NamedTuple):
    """ids: int32 H x W at the photo's size, 0 = void; segments: one for every other value in it."""

    ids: np.ndarray
    segments: list[Segment]


def decode(panoptic: np.ndarray, segments: np.ndarray, count: int, net: NetworkImage) -> PanopticResult:
    """The graph's outputs for one image -> a result at the photo's exact size.

    panoptic: uint8 H x W, 0 void, else 1 + row; segments: float K x 7 (contiguous category, score, ...), count valid.
    Area and box are measured on the map of the original size. Segments without a pixel there are dropped. id = 1 + row.
    Raises InputError where the map names a row that is not valid.
    """
    if panoptic.ndim != 2 or panoptic.dtype != np.uint8:
        raise InputError(f"panoptic must be uint8 H x W, not {panoptic.dtype} {list(panoptic.shape)}")
    if segments.ndim != 2 or segments.shape[1] != 7 or not 0 <= count <= len(segments):
        raise InputError(f"segments must be K x 7 with 0 <= segment_count <= K, not {list(segments.shape)} and {count}")
    ids = to_original(panoptic, net.size, net.original).astype(np.int32)
    area, bbox = measure(ids, 256)
    if area[count + 1 :].any():
        row = int(np.flatnonzero(area[count + 1 :])[0]) + count
        raise InputError(f"panoptic has pixels of segment row {row}, but segment_count is {count}")
    return PanopticResult(
        ids,
        [
            Segment(row + 1, int(segments[row, 0]), float(segments[row, 1]), int(area[row + 1]), bbox[row + 1])
            for row in range(count)
            if area[row + 1]
        ],
    )


def measure(ids: np.ndarray, length: int) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Pixel count, and tight box (x, y, width, height), of each id 0 .. length - 1 in an H x W map; absent: zeros."""
    height, width = ids.shape
    by_row = np.bincount((ids + np.arange(height)[:, None] * length).ravel(), minlength=height * length)
    by_column = np.bincount((ids + np.arange(width) * length).ravel(), minlength=width * length)
    by_row, by_column = by_row.reshape(height, length), by_column.reshape(width, length)
    area = by_row.sum(0)
    (y, h), (x, w) = _extent(by_row > 0), _extent(by_column > 0)
    return area, [(int(x[i]), int(y[i]), int(w[i]), int(h[i])) for i in range(length)]


def _extent(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """present: bool N x ids -> first index and length of each column's span; 0, 0 where there is none."""
    first = present.argmax(0)
    after_last = len(present) - present[::-1].argmax(0)
    return first, np.where(present.any(0), after_last - first, 0)
