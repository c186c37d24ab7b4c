"""How far two arrays are apart, added up over photos without keeping one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MOST_DB = 999.0  # of what does not differ at all
CHUNK = 2**20  # values in float64 at a time
LEAST_IOU = 0.5  # of two boxes that are one instance; PQ's own rule, under which at most one other can be it


@dataclass
class Errors:
    """Sums over the values at one place. Values that are not finite on either side are counted, and in no sum."""

    values: int = 0
    not_finite_a: int = 0
    not_finite_b: int = 0
    unlike: int = 0  # of these, where the other side is finite, or another infinity
    shapes: tuple[list[int], list[int]] | None = None  # the first two that differ
    power: float = 0.0  # of A
    power_b: float = 0.0
    product: float = 0.0
    power_of_error: float = 0.0
    largest: float = 0.0  # of A, without its sign
    largest_error: float = 0.0
    total: float = 0.0  # of A, without its sign
    total_error: float = 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Arrays of one photo; of another shape, they are not looked at."""
        if a.shape != b.shape:
            self.shapes = self.shapes or (list(a.shape), list(b.shape))
            return
        for start in range(0, a.size, CHUNK):
            self._add(*(np.asarray(each.reshape(-1)[start : start + CHUNK], np.float64) for each in (a, b)))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.values += a.size
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        both = finite_a & finite_b
        if not both.all():
            self.not_finite_a += int((~finite_a).sum())
            self.not_finite_b += int((~finite_b).sum())
            self.unlike += int((~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
            a, b = a[both], b[both]
        if not a.size:
            return
        error = b - a
        self.power += float(a @ a)
        self.power_b += float(b @ b)
        self.product += float(a @ b)
        self.power_of_error += float(error @ error)
        a, error = np.abs(a), np.abs(error)
        self.largest = max(self.largest, float(a.max()))
        self.largest_error = max(self.largest_error, float(error.max()))
        self.total += float(a.sum())
        self.total_error += float(error.sum())

    @property
    def max_error(self) -> float:
        """The largest error, relative to A's largest value."""
        return _ratio(self.largest_error, self.largest)

    @property
    def mean_error(self) -> float:
        """The mean error, relative to A's mean value; both without their signs."""
        return _ratio(self.total_error, self.total)

    @property
    def cosine(self) -> float:
        """Of the angle between all values of A and of B."""
        norm = math.sqrt(self.power) * math.sqrt(self.power_b)
        return self.product / norm if norm else float(self.power == self.power_b)

    @property
    def snr_db(self) -> float:
        """The power of A's values over that of the error."""
        if self.power_of_error == 0:
            return MOST_DB
        return 10 * math.log10(self.power / self.power_of_error) if self.power else -MOST_DB


def _ratio(error: float, value: float) -> float:
    return error / value if value else (0.0 if error == 0 else MOST_DB)


def match(
    boxes_a: np.ndarray, boxes_b: np.ndarray, labels_a: np.ndarray | None = None, labels_b: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of two sets of boxes, N x 4 and M x 4, are the same instance, in the order of A: pairs of equal label,
    the best IoU first, each row once."""
    iou = _iou(boxes_a, boxes_b)
    if labels_a is not None and labels_b is not None:
        iou = np.where(labels_a[:, None] == labels_b[None], iou, 0)
    rows, columns = (iou >= LEAST_IOU).nonzero()
    free_a, free_b = np.ones(len(boxes_a), bool), np.ones(len(boxes_b), bool)
    partner = np.full(len(boxes_a), -1)
    for index in np.argsort(-iou[rows, columns], kind="stable"):
        row, column = rows[index], columns[index]
        if free_a[row] and free_b[column]:
            free_a[row], free_b[column] = False, False
            partner[row] = column
    matched = (partner >= 0).nonzero()[0]
    return matched, partner[matched]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    corners = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(corners[1] - corners[0], 0, None).prod(-1)
    areas = [np.clip(each[:, 2:] - each[:, :2], 0, None).prod(-1) for each in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def from_centre(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes N x 4 as seen from the centres of A's: errors are then relative to a box' size, not to where it lies."""
    centre = np.tile((a[:, :2].astype(np.float64) + a[:, 2:]) / 2, 2)
    return a - centre, b - centre
