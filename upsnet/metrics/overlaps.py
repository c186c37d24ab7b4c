"""How many pixels each pair of values of two maps shares: what PQ and mIoU are made of."""

from __future__ import annotations

import numpy as np

VALUE_LIMIT = 1 << 24
LONGEST_RUN = (1 << 16) - 1


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two integer maps of one shape, values in [0, 2^24) -> the pairs of values that meet, sorted, and their pixels.

    Three int64 arrays of one length: the first map's value, the second's, pixels. ValueError for values outside.

    Maps are made of runs along their rows. Each run of equal pairs becomes one 64-bit key (24 bits of either value, 16
    of its length), so that the sort, which numpy does in vector registers, touches runs and not pixels.
    """
    first, second = first.ravel(), second.ravel()
    if not first.size:
        return (np.zeros(0, np.int64),) * 3
    changes = first[1:] != first[:-1]
    changes |= second[1:] != second[:-1]
    changes[LONGEST_RUN - 1 :: LONGEST_RUN] = True  # a longer run's length would not fit
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    keys = _values(first, starts) << 40
    keys |= _values(second, starts) << 16
    keys |= np.diff(starts, append=first.size).astype(np.uint64)
    keys.sort()
    pairs = (keys >> 16).view(np.int64)
    group = np.concatenate(([0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1))
    pixels = np.add.reduceat(keys & LONGEST_RUN, group).view(np.int64)
    pairs = pairs[group]
    return pairs >> 24, pairs & (VALUE_LIMIT - 1), pixels


def _values(flat: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The values of the runs as uint64."""
    values = flat[starts]
    if not 0 <= values.min() <= values.max() < VALUE_LIMIT:
        raise ValueError(f"values must lie in [0, {VALUE_LIMIT}), found {values.min()} .. {values.max()}")
    return values.astype(np.uint64)
