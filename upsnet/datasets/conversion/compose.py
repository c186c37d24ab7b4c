"""The shapes of one photo -> its panoptic map: every pixel belongs to one segment, or to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from upsnet.categories import Category
from upsnet.datasets.conversion.labels import Labels, Overlap, Shape, Size
from upsnet.datasets.conversion.regions import Window, rasterise
from upsnet.datasets.conversion.table import Table
from upsnet.errors import InputError
from upsnet.run_lengths import areas_and_boxes

Boxes = Literal["refuse", "fill", "crowd", "skip"]
VOID = -1  # a pixel that a shape without category holds


@dataclass
class ClassCount:
    """What became of the shapes of a class."""

    shapes: int = 0
    segments: int = 0
    crowds: int = 0  # of the segments
    hidden: int = 0  # shapes that others cover whole
    empty: int = 0  # shapes that hold no pixel's centre, or lie outside the photo
    boxes: int = 0  # shapes that are boxes, whatever became of them
    pixels: int = 0  # in the end
    covered: int = 0  # pixels of its shapes that another shape covers

    def add(self, other: ClassCount) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass
class Composed:
    """The map of one photo, or counts alone."""

    ids: np.ndarray  # int32 H x W, 0 = void
    segments: list[dict[str, Any]]  # segments_info
    counts: dict[str, ClassCount] = field(default_factory=dict)  # by category name; "" holds what is void
    contested: int = 0  # pixels that several shapes claim
    lost: list[str] = field(default_factory=list)  # shapes of which no segment came, and why


class Piece(NamedTuple):
    """A shape as it is painted."""

    shape: Shape
    window: Window
    category: Category | None
    number: int  # of its segment, or VOID
    crowd: bool


def compose(labels: Labels, size: Size, table: Table, overlap: Overlap, boxes: Boxes = "refuse") -> Composed:
    """size: height, width of the photo. Segments are numbered in the order of the shapes.

    Stuff is one segment a category, and so are the crowds of one category (official PQ knows one). Painted are
    semantic maps, crowds, then the other shapes, of which by `overlap` the smaller, the later or the earlier one is on
    top. Of two equally large ones it is the later. InputError names the shape that cannot be painted.
    """
    composed = Composed(np.zeros(size, np.int32), [])
    pieces = _pieces(labels, size, table, boxes, composed)
    owners: dict[int, Piece] = {}
    top = np.zeros(size, np.int32)
    claims = np.zeros(size, np.int32)  # the shape on top but for semantic maps
    contested = np.zeros(size, bool)
    for piece in in_painting_order(pieces, overlap):
        mask, place = piece.window.mask, piece.window.place
        owners[piece.number] = piece
        top[place][mask] = piece.number
        if piece.shape.is_ground:
            continue
        below = claims[place]
        meets = mask & (below != 0) & (below != piece.number)
        contested[place] |= meets
        for number, pixels in zip(*np.unique(below[meets], return_counts=True), strict=True):
            _count(composed, owners[int(number)].category).covered += int(pixels)
        below[mask] = piece.number
    composed.contested = int(contested.sum())
    _finish(composed, top, pieces, table.background)
    return composed


def _pieces(labels: Labels, size: Size, table: Table, boxes: Boxes, composed: Composed) -> list[Piece]:
    pieces: list[Piece] = []
    numbers: dict[object, int] = {}
    for shape in labels.shapes:
        category = table.by_key[shape.key]
        count = _count(composed, category)
        count.shapes += 1
        if shape.is_box:
            count.boxes += 1
            if boxes == "refuse":
                cure = "--boxes fill paints it, crowd marks it as not to be counted, skip leaves it out"
                raise InputError(f"{shape.name}: a box, which has no outline; {cure}")
            if boxes == "skip":
                composed.lost.append(f"{shape.name}: a box, left out")
                continue
        window = rasterise(shape, size)
        if not window.mask.size:
            count.empty += 1
            composed.lost.append(f"{shape.name}: holds no pixel")
            continue
        crowd = bool(category and category.isthing and (shape.crowd or (shape.is_box and boxes == "crowd")))
        alone = category is not None and category.isthing and not crowd
        own = len(numbers) + 1
        key = ("own", own) if alone else (category.id if category else None, crowd)
        number = VOID if category is None else numbers.setdefault(key, own)
        pieces.append(Piece(shape, window, category, number, crowd))
    return pieces


def in_painting_order(pieces: Sequence[Piece], overlap: Overlap) -> list[Piece]:
    """From the bottom to the top."""
    if overlap == "smaller":
        ordered = sorted(pieces, key=lambda piece: -int(piece.window.mask.sum()))
    else:
        ordered = list(pieces) if overlap == "later" else list(reversed(pieces))
    return sorted(ordered, key=lambda piece: (not piece.shape.is_ground, not piece.crowd))


def _finish(composed: Composed, top: np.ndarray, pieces: list[Piece], background: Category | None) -> None:
    """Numbers without gaps, the background, segments_info and the counts."""
    found = areas_and_boxes(top)
    rows: dict[int, tuple[Category, bool]] = {}
    for piece in pieces:
        if piece.number in found and piece.category is not None:
            rows.setdefault(piece.number, (piece.category, piece.crowd))
        elif piece.number not in found:
            _count(composed, piece.category).hidden += 1
            composed.lost.append(f"{piece.shape.name}: covered whole")
    if background is not None and 0 in found:
        number = next((n for n, (category, _) in rows.items() if category == background), max(rows, default=0) + 1)
        top[top == 0] = number
        rows.setdefault(number, (background, False))
        found = areas_and_boxes(top)
    new = {number: place for place, number in enumerate(sorted(rows), 1)}
    for number, place in new.items():
        category, crowd = rows[number]
        area, box = found[number]
        info = {"id": place, "category_id": category.id, "area": area, "bbox": list(box), "iscrowd": int(crowd)}
        composed.segments.append(info)
        count = _count(composed, category)
        count.segments, count.crowds, count.pixels = (
            count.segments + 1,
            count.crowds + crowd,
            count.pixels + area,
        )
    _count(composed, None).pixels += sum(found.get(number, (0,))[0] for number in (0, VOID))
    lookup = np.zeros(max(rows, default=0) + 2, np.int32)
    for number, place in new.items():
        lookup[number] = place
    composed.ids = lookup[np.maximum(top, 0)]


def _count(composed: Composed, category: Category | None) -> ClassCount:
    return composed.counts.setdefault(category.name if category else "", ClassCount())
