"""A panoptic result at the photo's size, and how the network's three outputs become one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from upsnet.errors import InputError
from upsnet.geometry import NetworkImage, to_original
from upsnet.run_lengths import Box, areas_and_boxes


class Segment(NamedTuple):
    """One segment of a result. Areas and boxes are in original pixels."""

    id: int  # value in PanopticResult.ids
    category: int  # contiguous
    score: float
    area: int
    bbox: Box


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
    found = areas_and_boxes(ids)
    if max(found) > count:
        row = next(id for id in found if id > count) - 1
        raise InputError(f"panoptic has pixels of segment row {row}, but segment_count is {count}")
    return PanopticResult(
        ids,
        [
            Segment(id, int(segments[id - 1, 0]), float(segments[id - 1, 1]), area, box)
            for id, (area, box) in found.items()
            if id
        ],
    )
