"""Masks -> rings along their pixels' edges, for tests that write labels of other formats from a panoptic truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

Ring = list[tuple[int, int]]  # corners (x, y), without the straight ones between


class Outline(NamedTuple):
    """Of one connected piece (pixels that share an edge)."""

    outer: Ring
    holes: list[Ring]


def outlines(mask: np.ndarray) -> list[Outline]:
    """bool H x W -> its pieces: filling the outer ring without the holes gives the piece back exactly."""
    pieces, count = ndimage.label(mask)
    found = []
    for number, place in zip(range(1, count + 1), ndimage.find_objects(pieces), strict=True):
        piece = pieces[place] == number
        y, x = place[0].start, place[1].start
        filled = ndimage.binary_fill_holes(piece)
        (outer,) = _rings(filled, x, y)
        inner, holes = ndimage.label(filled & ~piece)
        rings = [
            ring for hole in range(1, holes + 1) for ring in _rings(ndimage.binary_fill_holes(inner == hole), x, y)
        ]
        found.append(Outline(outer, rings))
    return found


def _rings(mask: np.ndarray, x: int, y: int) -> list[Ring]:
    """The borders of a mask without holes, clockwise."""
    framed = np.pad(mask, 1)
    inside = framed[1:-1, 1:-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    borders = (  # towards which neighbour, and the edge's ends from the pixel's corner
        (framed[:-2, 1:-1], (0, 0), (1, 0)),
        (framed[1:-1, 2:], (1, 0), (1, 1)),
        (framed[2:, 1:-1], (1, 1), (0, 1)),
        (framed[1:-1, :-2], (0, 1), (0, 0)),
    )
    for neighbour, (x1, y1), (x2, y2) in borders:
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            steps.setdefault((column + x1, row + y1), []).append((column + x2, row + y2))
    rings = []
    while steps:
        start = next(iter(steps))
        ring, here, before = [start], start, None
        while True:
            choices = steps[here]
            if len(choices) > 1 and before is not None:  # two pieces meet at a corner: turn right, into the own one
                right = (before[1] - here[1], here[0] - before[0])
                choices.sort(key=lambda to: (to[0] - here[0]) * right[0] + (to[1] - here[1]) * right[1])
            after = choices.pop()
            if not choices:
                del steps[here]
            before, here = here, after
            if here == start:
                break
            ring.append(here)
        corners = [
            (cx + x, cy + y)
            for (ax, ay), (cx, cy), (bx, by) in zip([ring[-1], *ring[:-1]], ring, [*ring[1:], ring[0]], strict=True)
            if (cx - ax) * (by - cy) != (cy - ay) * (bx - cx)
        ]
        rings.append(corners)
    return rings
