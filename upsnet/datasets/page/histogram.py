"""Histograms of the sizes of segments and photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Sides in pixels, two bins for each doubling: COCO's limits of small and large things, 32 and 96, are among them.
SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
SMALL, LARGE = 32, 96  # sides: areas of 32 x 32 and 96 x 96 pixels
RATIOS = (
    (1 / 2, "1:2"),
    (2 / 3, "2:3"),
    (4 / 5, "4:5"),
    (5 / 4, "5:4"),
    (3 / 2, "3:2"),
    (2.0, "2:1"),
)
COMMON = 3  # sizes of photos that are named


class Bin(NamedTuple):
    """One column."""

    label: str
    count: int
    height: float  # per cent of the highest
    kind: str = ""  # "small", "medium" or "large" as COCO calls a thing


def side_bins(sides: np.ndarray, sized: bool = False) -> list[Bin]:
    """Sides in pixels by SIDES, from the lower edge on, without the empty bins at both ends. sized: with COCO's kind."""
    counts = [int(count) for count in np.histogram(sides, (0, *SIDES, np.inf))[0]]
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return []
    bins = []
    for place in range(used[0], used[-1] + 1):
        low = SIDES[place - 1] if place else 0
        label = f"{low} to {SIDES[place]}" if place < len(SIDES) else f"from {low}"
        kind = ("small" if low < SMALL else "medium" if low < LARGE else "large") if sized else ""
        bins.append(Bin(label, counts[place], 0.0, kind))
    return _scaled(bins)


def ratio_bins(ratios: np.ndarray) -> list[Bin]:
    """Width by height, from the lower edge on."""
    counts = np.histogram(ratios, (0, *(edge for edge, _ in RATIOS), np.inf))[0]
    names = [name for _, name in RATIOS]
    between = [f"{low} to {high}" for low, high in zip(names, names[1:], strict=False)]
    labels = [f"under {names[0]}", *between, f"from {names[-1]}"]
    return _scaled([Bin(label, int(count), 0.0) for label, count in zip(labels, counts, strict=True)])


def coco_shares(areas: np.ndarray) -> dict[str, float]:
    """Which share of things is small, medium and large as COCO's evaluation has it; empty where there is none."""
    if not areas.size:
        return {}
    small, large = int((areas < SMALL**2).sum()), int((areas >= LARGE**2).sum())
    counts = {"small": small, "medium": areas.size - small - large, "large": large}
    return {name: count / areas.size for name, count in counts.items()}


def common_sizes(sizes: Iterable[tuple[int, int]]) -> list[tuple[str, int]]:
    """The most frequent sizes (height, width), as "width × height", and how many photos have each."""
    counts = Counter(sizes)
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return [(f"{width} × {height}", count) for (height, width), count in ordered[:COMMON]]


def _scaled(bins: Sequence[Bin]) -> list[Bin]:
    most = max((each.count for each in bins), default=0)
    return [each._replace(height=100 * each.count / most if most else 0.0) for each in bins]
