"""Which photos show the same picture: the same file, or fingerprints that are nearly alike, also through a mirror.

Two photos are alike where at most COARSE of their 63 lowest bits and at most FINE of all 255 differ. Nobody compares
all with all: of two that differ in COARSE bits, one of COARSE + 1 bands of bits is the same, and only those that share
a band are compared (multi-index hashing: Norouzi, Punjani, Fleet, Fast Search in Hamming Space, CVPR 2012).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from upsnet.datasets.parallel import chunked, map_parallel
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.splitting.fingerprint import Fingerprint, fingerprint, mirrored

COARSE, FINE = 8, 56  # bits
COARSE_SIDE = 8  # frequencies of each direction
BANDS = COARSE + 1
CHUNK = 32  # photos that a process takes at once
MOST_PAIRS = 1 << 21  # compared at once


def fingerprints(photos: Sequence[Path], workers: int, progress: bool = True) -> list[Fingerprint]:
    """Of all photos, in their order. Raises InputError where one cannot be read."""
    found: list[Fingerprint] = []
    with progress_bar(total=len(photos), title="photos", shown=progress) as bar:
        for part in map_parallel(_fingerprints, chunked(photos, CHUNK), workers):
            found += part
            bar.update(len(part))
    return found


def _fingerprints(photos: list[Path]) -> list[Fingerprint]:
    return [fingerprint(photo) for photo in photos]


def join_same_files(groups: np.ndarray, prints: Sequence[Fingerprint]) -> None:
    """groups: int N, of each photo the first one of its group; photos whose files are equal come into one."""
    join_equal(groups, [each.digest for each in prints])


def join_equal(groups: np.ndarray, keys: Sequence[object]) -> None:
    """What has the same key comes into one group; None is nobody's key."""
    first: dict[object, int] = {}
    pairs = [(first.setdefault(key, index), index) for index, key in enumerate(keys) if key is not None]
    if pairs:
        join(groups, *np.array(pairs).T)


def join_alike(groups: np.ndarray, prints: Sequence[Fingerprint]) -> None:
    """Photos that are alike come into one group; of flat ones nothing is said."""
    judged = np.array([index for index, each in enumerate(prints) if not each.is_flat], np.int64)
    if not len(judged):
        return
    bits = np.stack([prints[index].bits for index in judged])
    plain, turned = _packed(bits), _packed(mirrored(bits))
    keys, mirror_keys = _band_keys(bits), _band_keys(mirrored(bits))
    own = np.searchsorted(np.unique(groups[judged]), groups[judged])  # the groups so far, numbered among the judged
    local = np.unique(own, return_index=True)[1][own]
    for band in range(BANDS):
        for asked, asked_keys in ((plain, keys), (turned, mirror_keys)):
            for rows, columns in _buckets(asked_keys[:, band], keys[:, band]):
                _join_bucket(local, rows, columns, asked, plain)
    join(groups, judged, judged[local])


def join(groups: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """one, other: int M, pairs of photos that belong together. Every group keeps the number of its first photo."""
    while True:
        low, high = np.minimum(groups[one], groups[other]), np.maximum(groups[one], groups[other])
        if np.array_equal(low, high):
            return
        np.minimum.at(groups, high, low)
        while not np.array_equal(groups[groups], groups):
            groups[:] = groups[groups]


def _packed(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 N: the coarse bits; uint64 N x 4: all."""
    coarse = np.packbits(bits[:, :COARSE_SIDE, :COARSE_SIDE].reshape(len(bits), -1), axis=1)
    return coarse.view(np.uint64)[:, 0], np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)


def _band_keys(bits: np.ndarray) -> np.ndarray:
    """int N x BANDS. Each band has bits of all frequencies."""
    coarse = bits[:, :COARSE_SIDE, :COARSE_SIDE].reshape(len(bits), -1)[:, 1:]
    return np.stack([np.packbits(coarse[:, band::BANDS], axis=1)[:, 0] for band in range(BANDS)], axis=1).astype(int)


def _buckets(asked: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every key: those that ask for it, and those that have it."""
    by_asked, by_key = np.argsort(asked, kind="stable"), np.argsort(keys, kind="stable")
    for key in np.unique(keys):
        rows, columns = (
            order[np.searchsorted(values[order], key) : np.searchsorted(values[order], key, "right")]
            for order, values in ((by_asked, asked), (by_key, keys))
        )
        if len(rows):
            yield rows, columns


def _join_bucket(
    groups: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    asked: tuple[np.ndarray, np.ndarray],
    plain: tuple[np.ndarray, np.ndarray],
) -> None:
    """What is in the bucket's largest group is not compared with itself: a camera that stands still, with all its
    frames in one bucket, would take the square of them."""
    while len(rows):
        found, sizes = np.unique(groups[columns], return_counts=True)
        largest = found[np.argmax(sizes)]
        inside = groups[rows] == largest
        against = columns[groups[columns] != largest] if inside.any() else columns
        some = np.flatnonzero(inside if inside.any() else ~inside)[: max(1, MOST_PAIRS // max(1, len(against)))]
        chosen, rows = rows[some], np.delete(rows, some)
        i, j = np.nonzero(np.bitwise_count(asked[0][chosen][:, None] ^ plain[0][against]) <= COARSE)
        one, other = chosen[i], against[j]
        apart = groups[one] != groups[other]
        one, other = one[apart], other[apart]
        near = np.bitwise_count(asked[1][one] ^ plain[1][other]).sum(axis=1, dtype=int) <= FINE
        join(groups, one[near], other[near])
