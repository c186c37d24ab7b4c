"""The text file of one photo of a YOLO data set: a row `class x y x y ...` for each object, in shares of the sides.

What a row of how many numbers is, and which values are refused, is Ultralytics' rule (verify_image_label): four numbers
are a box (its centre, width and height), six or more the points of an outline; values reach from -0.01 to 1.01.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from upsnet.datasets.conversion.labels import Labels, LeftOut, Polygon, Shape, Size
from upsnet.datasets.conversion.text import read_text
from upsnet.errors import InputError

BESIDE = 0.01  # of the photo's side: how far outside a value may lie
BOX, CORNERS, OUTLINE = 4, 8, 6  # numbers after the class: of a box, of one that is turned, at least


class Rows(NamedTuple):
    """What the rows of a data set mean."""

    classes: Collection[int]
    known: str  # the classes, for messages
    keypoints: int = 0  # numbers of a pose after its box
    oriented: bool = False  # four points are the corners of a box


def read_rows(size: Size, file: Path, rows: Rows) -> Labels:
    """InputError names the file, the line and the cure."""
    shapes, left_out = [], []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if tokens := line.split():
            name = f"{file}: line {number}"
            try:
                shapes.append(_shape(tokens, name, size, rows))
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
            if rows.keypoints:
                left_out.append(LeftOut("keypoints", name))
    return Labels(shapes, None, left_out)


def _shape(tokens: list[str], name: str, size: Size, rows: Rows) -> Shape:
    values = np.array([_number(token) for token in tokens])
    key = _class(float(values[0]), rows)
    points = values[1:]
    if rows.keypoints:
        if len(points) != BOX + rows.keypoints:
            wanted = f"a box of {BOX} and, by kpt_shape of data.yaml, {rows.keypoints} of its keypoints"
            raise InputError(f"{len(points)} numbers after the class, not {wanted}")
        points = points[:BOX]
    _check(points)
    scale = np.array(size[::-1], float)
    if len(points) == BOX:
        centre, sides = points[:2], points[2:]
        if (sides < 0).any():
            raise InputError("a box of negative width or height")
        corners = centre + sides * np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        return Shape(key, (Polygon((corners * scale,)),), name, is_box=True)
    ring = points.reshape(-1, 2) * scale
    return Shape(key, (Polygon((ring,)),), name, is_box=rows.oriented and len(points) == CORNERS)


def _number(token: str) -> float:
    try:
        if "_" in token:  # which Python takes
            raise ValueError
        return float(token)
    except ValueError:
        cure = "separate numbers by spaces" if "," in token or ";" in token else "a row is: class x y x y x y ..."
        raise InputError(f"'{token[:40]}' is not a number; {cure}") from None


def _class(value: float, rows: Rows) -> int:
    if value not in rows.classes:  # 3.0 is 3
        raise InputError(f"data.yaml names no class {value:g}; there are {rows.known}")
    return int(value)


def _check(points: np.ndarray) -> None:
    """How many numbers there are, and how large they are."""
    count = len(points)
    if count % 2:
        cure = "predictions have their confidence or a track's number there: take it off, or give kpt_shape for a pose"
        raise InputError(f"{count} numbers after the class are no points (x, y): one is too many; {cure}")
    if count != BOX and count < OUTLINE:
        raise InputError(f"{count} numbers after the class; a box has 4, an outline at least 6")
    if not np.isfinite(points).all():
        raise InputError("a number that is not finite")
    wrong = points[(points < -BESIDE) | (points > 1 + BESIDE)]
    if wrong.size:
        cure = "coordinates are shares of the photo's width and height; divide pixels by them, cut off what is outside"
        raise InputError(f"the coordinate {wrong[0]:g} is not from 0 to 1; {cure}")
