"""Where two answers for one photo differ."""

from __future__ import annotations

import numpy as np

from upsnet.categories import differences
from upsnet.parity.pixels import identical_pixels
from upsnet.viewer.album import Answer, packed_map, view_size


def difference(a: Answer, b: Answer) -> dict[str, object]:
    """JSON: how many pixels differ, by the parity's own rule, and a map of them at the size of the view.

    Of models that know different classes, in which they differ: a pixel of theirs is not the same by any rule.
    """
    if words := differences(a.categories, b.categories, "A", "B", most=3):
        return {"classes": words}
    same = identical_pixels(a.full(), b.full())
    differing = int(same.size - np.count_nonzero(same))
    return {"pixels": int(same.size), "differing": differing, "map": packed_map(_shrunk(~same))}


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """uint8 0 or 1, of the view's size: no pixel that differs is lost."""
    height, width = view_size(*mask.shape)
    rows, columns = (np.arange(count) * size // count for count, size in zip((height, width), mask.shape, strict=True))
    small = np.maximum.reduceat(mask.astype(np.uint8), rows, axis=0)
    return np.maximum.reduceat(small, columns, axis=1)
