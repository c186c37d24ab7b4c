"""What the JSONs of drawing tools have in common: points, discs, masks as PNGs in base64, objects of many parts."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Hashable, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.datasets.conversion.labels import Bitmap, LeftOut, Region, Shape, Size
from upsnet.datasets.conversion.regions import check_points
from upsnet.errors import InputError, first_line
from upsnet.json_values import breaks_line, is_visible
from upsnet.photos import reading_photo

MOST = 1e15  # of a coordinate, whatever the photo is; NaN is not below it
MARGIN = 1 << 16  # bytes of a PNG beside its pixels


def is_class_name(value: object) -> bool:
    """Whether it is a text on one line that shows something and can be written."""
    if not isinstance(value, str) or breaks_line(value) or not is_visible(value):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)  # half a character


def class_name(value: object, key: str, where: str) -> str:
    """InputError for what is no name of a class."""
    if not is_class_name(value):
        why = "a control character, or nothing that can be seen" if isinstance(value, str) else "no text"
        raise InputError(f"{where}: '{key}' is {value!r:.40}, not the name of a class: {why}")
    return str(value)


def points_of(value: object, where: str) -> np.ndarray:
    """[[x, y], ...] -> float64 N x 2. InputError names the point that is none."""
    if not isinstance(value, list):
        raise InputError(f"{where}: its points are {value!r:.40}, not a list of [x, y]")
    if all(type(point) is list and len(point) == 2 for point in value):
        numbers = list(chain.from_iterable(value))
        if {*map(type, numbers)} <= {int, float}:  # not text, true or null, which numpy would take
            with suppress(OverflowError):  # an integer of 400 digits
                points = np.array(numbers, np.float64).reshape(-1, 2)
                if (np.abs(points) < MOST).all():
                    return points
    place, point = next((place, point) for place, point in enumerate(value) if not _is_point(point))
    raise InputError(f"{where}: points[{place}] is {point!r:.40}, not [x, y]: two numbers")


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(number) for number in value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < MOST  # type: ignore[arg-type]


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Its ring, by any two opposite corners."""
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)


def clockwise(angle: float) -> np.ndarray:
    """Turns rows (x, y), y downwards, by an angle in radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def disc(center: np.ndarray, radius: float, size: Size, where: str) -> Bitmap:
    """The pixels whose middle lies in a circle."""
    check_points(np.array([center - radius, center + radius]), size, where)
    low = np.clip(np.floor(center - radius).astype(int), 0, size[::-1])
    high = np.clip(np.ceil(center + radius).astype(int), 0, size[::-1])
    x = np.arange(low[0], high[0]) + 0.5 - center[0]
    y = np.arange(low[1], high[1]) + 0.5 - center[1]
    return Bitmap(x**2 + y[:, None] ** 2 <= radius**2, int(low[0]), int(low[1]))


def from_base64(text: object, where: str) -> bytes:
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r:.40}, not a text in base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # text that is not ASCII, too
        raise InputError(f"{where} is not base64: {first_line(error)}") from None


def inflate(content: bytes, size: Size, where: str) -> bytes:
    """zlib's content, which may be as large as a PNG of the photo's size gets."""
    unpacker = zlib.decompressobj()
    most = MARGIN + 5 * size[0] * size[1]
    try:
        unpacked = unpacker.decompress(content, most)
    except zlib.error as error:
        raise InputError(f"{where} cannot be unpacked: {first_line(error)}") from None
    if unpacker.unconsumed_tail:
        raise InputError(f"{where} unpacks to over {most} bytes, more than a mask of the photo has")
    if not unpacker.eof:
        raise InputError(f"{where} ends before its end")
    return unpacked


def png_mask(content: bytes, size: Size, where: str) -> np.ndarray:
    """A PNG -> bool h x w: what is opaque, where it has transparency, else what is not 0.

    size: height, width of the photo. InputError for what is larger, or no PNG.
    """
    with reading_photo(where), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        width, height = image.size
        if height > size[0] or width > size[1]:
            raise InputError(f"{where}: {width} x {height} pixels, the photo has {size[1]} x {size[0]}")
        image.load()
        if image.has_transparency_data:
            return np.asarray(image.convert("RGBA"))[..., 3] > 0
        values = np.asarray(image)
        return values != 0 if values.ndim == 2 else (values != 0).any(-1)


class Part(NamedTuple):
    """Something that was drawn, of an object that may have more parts."""

    key: Hashable  # of its class
    regions: tuple[Region, ...]
    name: str
    crowd: bool = False
    is_box: bool = False


def join(parts: Sequence[tuple[Hashable, Part]]) -> tuple[list[Shape], list[LeftOut]]:
    """The parts of one class that share a group (None: alone) are one object, at the place of the first. Where a group
    has an outline, its boxes are left out: they say where the object is, which the outline says better."""
    groups: dict[Hashable, list[Part]] = {}
    for place, (group, part) in enumerate(parts):
        groups.setdefault((part.key, place, None) if group is None else (part.key, group), []).append(part)
    shapes, left_out = [], []
    for members in groups.values():
        outlines = [part for part in members if not part.is_box]
        if outlines:
            left_out += [LeftOut("box of a group with an outline", part.name) for part in members if part.is_box]
        kept = outlines or members
        regions = tuple(region for part in kept for region in part.regions)
        crowd = any(part.crowd for part in kept)
        shapes.append(Shape(kept[0].key, regions, kept[0].name, crowd, is_box=not outlines))
    return shapes, left_out
