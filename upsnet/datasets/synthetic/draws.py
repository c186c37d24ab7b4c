"""Integer random draws and noise, the same on every machine.

The only random source is PCG64's raw 64-bit stream, which numpy keeps stable (its distributions it does not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
T = TypeVar("T")

UNIT = 1024  # fixed point: one radius of a shape


class Draws:
    """Integer draws from one raw random stream."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._pool: list[int] = []  # drawn ahead, for speed

    def field(self, shape: tuple[int, ...], low: int, high: int) -> Ints:
        """Integers low..high, both included."""
        raw = np.asarray(self._bits.random_raw(math.prod(shape))) >> np.uint64(32)
        return low + (raw.astype(np.int64) * (high - low + 1) >> 32).reshape(shape)

    def between(self, low: int, high: int) -> int:
        if not self._pool:
            self._pool = self.field((256,), 0, (1 << 31) - 1).tolist()
        return low + (self._pool.pop() * (high - low + 1) >> 31)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.between(0, len(items) - 1)]

    def sample(self, count: int, population: int) -> list[int]:
        """`count` different integers of 0..population-1."""
        return [int(i) for i in np.argsort(self.field((population,), 0, 1 << 30), kind="stable")[:count]]

    def turn(self) -> tuple[int, int]:
        """A direction: (cos, sin) * UNIT from a rational point of the circle, exact in integers."""
        p, q = self.between(0, 32), 32
        c, s = UNIT * (q * q - p * p) // (q * q + p * p), UNIT * 2 * p * q // (q * q + p * p)
        return self.pick(((c, s), (-s, c), (-c, -s), (s, -c)))


def smooth_noise(draws: Draws, height: int, width: int, cell: int) -> Ints:
    """Value noise 0..255: a random lattice every `cell` pixels, smoothstep between its points."""
    lattice = draws.field((height // cell + 2, width // cell + 2), 0, 255)
    (row, y), (column, x) = (np.divmod(np.arange(n), cell) for n in (height, width))
    y, x = (t * t * (3 * cell - 2 * t) // (cell * cell) for t in (y, x))
    x, y = x[None], y[:, None]
    upper, lower = ((lattice[r][:, column] * (cell - x) + lattice[r][:, column + 1] * x) for r in (row, row + 1))
    return (upper * (cell - y) + lower * y) // (cell * cell)
