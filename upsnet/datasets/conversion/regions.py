"""The pixels of a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from upsnet import hotcoco_package
from upsnet.datasets.conversion.labels import Polygon, Region, Rle, Shape, Size
from upsnet.errors import InputError

MOST_PLACE = 8  # characters of a number after the first: 45 bits
STEPS = 5  # in a pixel: COCO's rule rounds to these
FAR = 4.0  # photo sides that a point may lie outside: beyond, somebody counts in another unit


class Window(NamedTuple):
    """A mask, bool h x w, that is cut to what lies inside the photo: upper left pixel at (x, y)."""

    mask: np.ndarray
    x: int
    y: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it lies in a map of the photo's size."""
        return slice(self.y, self.y + self.mask.shape[0]), slice(self.x, self.x + self.mask.shape[1])


NOTHING = Window(np.zeros((0, 0), bool), 0, 0)


def rasterise(shape: Shape, size: Size) -> Window:
    """The union of its regions, cut to its own box (0 x 0 where it holds no pixel). InputError names the shape."""
    found = [_window(region, size, shape.name) for region in shape.regions]
    windows = [window for window in found if window.mask.size] or [NOTHING]
    if len(windows) == 1:
        return windows[0]
    x, y = min(window.x for window in windows), min(window.y for window in windows)
    right = max(window.x + window.mask.shape[1] for window in windows)
    low = max(window.y + window.mask.shape[0] for window in windows)
    union = Window(np.zeros((low - y, right - x), bool), x, y)
    for window in windows:
        union.mask[Window(window.mask, window.x - x, window.y - y).place] |= window.mask
    return union


def _window(region: Region, size: Size, name: str) -> Window:
    if isinstance(region, Polygon):
        rings, holes = ([_steps(ring, size, name) for ring in each] for each in region)
        mask, x, y = _filled(rings, size)
        if holes:
            mask &= ~_filled(holes, size, Window(mask, x, y)).mask
        return _tight(mask, x, y)
    if isinstance(region, Rle):
        return _tight(_decoded(region, size, name), 0, 0)
    mask, x, y = region
    top, left = max(0, -y), max(0, -x)
    inside = mask[top : max(top, size[0] - y), left : max(left, size[1] - x)]
    return _tight(inside, x + left, y + top)


def _tight(mask: np.ndarray, x: int, y: int) -> Window:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return NOTHING
    top, left = int(rows[0]), int(columns[0])
    return Window(mask[top : rows[-1] + 1, left : columns[-1] + 1].copy(), x + left, y + top)


def _steps(ring: np.ndarray, size: Size, name: str) -> np.ndarray:
    """A ring's points in steps of a fifth of a pixel, int64 N x 2, as pycocotools' frPoly takes them."""
    return np.trunc(STEPS * check_points(ring, size, name) + 0.5).astype(np.int64)


def _filled(rings: Sequence[np.ndarray], size: Size, place: Window | None = None) -> Window:
    """What any of the rings holds, in steps, in a window around them that is no larger than the photo; or in `place`.

    It is frPoly's result for the whole photo: a ring is moved by whole pixels, in steps, where that changes nothing.
    """
    kept = [ring for ring in rings if len(ring) >= 3]  # fewer points hold nothing
    if place is None:
        if not kept:
            return NOTHING
        points = np.concatenate(kept)
        low = np.clip(points.min(0) // STEPS - 1, 0, size[::-1])
        high = np.clip(points.max(0) // STEPS + 2, low, size[::-1])
        place = Window(np.zeros((high[1] - low[1], high[0] - low[0]), bool), int(low[0]), int(low[1]))
    mask = np.zeros(place.mask.shape, bool)
    if mask.size:
        rle = hotcoco_package.load().mask
        for ring in kept:
            moved = ring - STEPS * np.array([place.x, place.y])
            points = (moved - np.where(moved < 0, 0.75, 0.25)) / STEPS  # which frPoly rounds to `moved`
            mask |= rle.decode(rle.frPyObjects([points.reshape(-1).tolist()], *mask.shape)[0]).astype(bool)
    return Window(mask, place.x, place.y)


def check_points(ring: np.ndarray, size: Size, name: str) -> np.ndarray:
    """float64 N x 2. InputError for what is no number, and for points so far outside that the unit must be another."""
    points = np.asarray(ring, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise InputError(f"{name}: a point is not a finite number")
    far = (points < -FAR * np.array(size[::-1])) | (points > (1 + FAR) * np.array(size[::-1]))
    if far.any():
        x, y = points[far.any(1)][0]
        photo = f"the photo of {size[1]} x {size[0]} pixels (width x height)"
        raise InputError(f"{name}: the point ({x:g}, {y:g}) is far outside {photo}")
    return points


def _decoded(region: Rle, size: Size, name: str) -> np.ndarray:
    counts, (height, width) = region
    if (height, width) != size:
        photo = f"the photo is {size[1]} x {size[0]} (width x height)"
        raise InputError(f"{name}: its run-length code is of {width} x {height} pixels, {photo}")
    lengths = run_lengths(counts, name) if isinstance(counts, bytes) else np.asarray(counts, np.int64).reshape(-1)
    if (lengths < 0).any():
        raise InputError(f"{name}: its run-length code has a negative length")
    if lengths.max(initial=0) > height * width or lengths.sum() != height * width:
        covered = f"covers {sum(lengths.tolist())} pixels, the photo has {height * width}"
        raise InputError(f"{name}: its run-length code {covered}; it is cut off, or of another photo")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def run_lengths(code: bytes, name: str) -> np.ndarray:
    """COCO's compressed code -> int64 lengths. InputError for what is none.

    A number is a few characters of six bits above "0", the lowest five bits first; the sixth says that another follows.
    From the third length on it is the difference to the length two before (pycocotools' rleToString). Libraries decode
    what was cut off without a word: hence our own reading.
    """
    digits = np.frombuffer(code, np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(digits & 32 == 0)
    whole = len(ends) and ends[-1] == len(digits) - 1
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(digits)) - np.repeat(starts, ends + 1 - starts) if whole else np.array([MOST_PLACE + 1])
    if not ((digits >= 0) & (digits < 64)).all() or places.max() > MOST_PLACE:
        raise InputError(f"{name}: its run-length code is damaged or cut off")
    values = np.add.reduceat((digits & 31) << 5 * places, starts)
    values -= np.where(digits[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
