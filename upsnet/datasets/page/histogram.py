"""Histograms of the sizes of segments and photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
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
    number: int  # of values
    height: float = 0.0  # per cent of the highest
    kind: str = ""  # "small", "medium" or "large" as COCO calls a thing


def side_bins(sides: np.ndarray, sized: bool = False) -> list[Bin]:
    """Sides in pixels by SIDES, from the lower edge on. sized: with COCO's kinds."""
    low = (0, *SIDES)
    labels = [f"{start} to {end}" for start, end in pairwise(low)] + [f"from {low[-1]}"]
    kinds = ["small" if start < SMALL else "medium" if start < LARGE else "large" for start in low]
    counts = np.histogram(sides, (*low, np.inf))[0]
    return _columns(
        [
            Bin(label, count, kind=kind if sized else "")
            for label, count, kind in zip(labels, counts, kinds, strict=True)
        ]
    )


def ratio_bins(ratios: np.ndarray) -> list[Bin]:
    """Width by height, from the lower edge on."""
    names = [name for _, name in RATIOS]
    labels = [f"under {names[0]}", *(f"{low} to {high}" for low, high in pairwise(names)), f"from {names[-1]}"]
    counts = np.histogram(ratios, (0, *(edge for edge, _ in RATIOS), np.inf))[0]
    return _columns([Bin(*each) for each in zip(labels, counts, strict=True)])


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


def _columns(bins: list[Bin]) -> list[Bin]:
    """With heights, and without the empty ones at both ends."""
    used = [place for place, each in enumerate(bins) if each.number]
    most = max((each.number for each in bins), default=0)
    kept = bins[used[0] : used[-1] + 1] if used else []
    return [each._replace(number=int(each.number), height=100 * int(each.number) / most) for each in kept]
