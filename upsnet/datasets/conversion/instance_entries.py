"""The annotations of a COCO instances JSON: kept small while the file is read, and turned into shapes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upsnet.datasets.conversion.drawn import points_of, rectangle
from upsnet.datasets.conversion.labels import Labels, LeftOut, Polygon, Region, Rle, Shape, Size
from upsnet.errors import InputError
from upsnet.json_values import MOST_ID, complaint, finite, flag, whole

KEYS = ("id", "category_id", "iscrowd", "ignore", "segmentation", "bbox")  # that are read, beside image_id
NUMBERS = {int, float}


def slim(entry: dict[str, Any]) -> dict[str, Any]:
    """For read_json: an object of the file as soon as it is read. The numbers of a polygon, and run lengths, become
    arrays: Python's numbers would take four times the memory, which is gigabytes for COCO's training photos."""
    outline = entry.get("segmentation")
    if type(outline) is list:
        entry["segmentation"] = [_packed("d", ring) for ring in outline]
    if "counts" in entry:
        entry["counts"] = _packed("q", entry["counts"])
    return entry


def _packed(code: str, numbers: Any) -> Any:
    """code: of array. What is no list of such numbers, or has one too large, stays as it is."""
    if type(numbers) is list and numbers and NUMBERS.issuperset(map(type, numbers)):
        try:
            return array(code, numbers)
        except (OverflowError, TypeError):
            pass
    return numbers


def read_annotations(
    entries: Sequence[tuple[int, Mapping[str, Any]]],
    names: Mapping[int, str],
    drawn_on: Size | None,
    file: str,
    no_crowds: bool = False,
) -> Labels:
    """The shapes of one image's annotations, each with its place in the list. names: of the categories. drawn_on:
    height, width of the image as the JSON has it. no_crowds: `iscrowd` means nothing. InputError names the
    annotation."""
    shapes, left_out = [], []
    for place, entry in entries:
        where = f"{file}: annotation {entry.get('id', f'no. {place}')!s:.40}"
        category = whole(entry.get("category_id"))
        if category is None:
            raise InputError(f"{where}: {complaint(entry, 'category_id')}")
        if category not in names:
            raise InputError(f"{where}: has the unknown category {category}; add it to the categories")
        where = f"{where} ({names[category]})"
        crowd, ignored = (flag(entry.get(key) or 0) for key in ("iscrowd", "ignore"))
        if crowd is None:
            raise InputError(f"{where}: {complaint(entry, 'iscrowd', '0 or 1')}")
        is_crowd = bool(ignored or (crowd and not no_crowds))
        regions = read_segmentation(entry.get("segmentation"), where)
        box = None if regions else read_box(entry.get("bbox"), where)
        if regions or box:
            shapes.append(Shape(category, regions or (box,), where, is_crowd, is_box=not regions))  # type: ignore[arg-type]
        else:
            left_out.append(LeftOut("annotation without outline and box", where))
    return Labels(shapes, drawn_on, left_out)


def read_segmentation(value: object, where: str) -> tuple[Region, ...]:
    """Empty where there is no outline. What a list of polygons holds is one object."""
    if value is None or value == [] or value == {} or value == [[]]:
        return ()
    if isinstance(value, Mapping):
        return (_run_lengths(value, where),)
    if not isinstance(value, list):
        raise InputError(f"{where}: 'segmentation' is {value!r:.40}, neither a list of polygons nor run lengths")
    rings = [each for each in value if isinstance(each, list | array)]
    if not rings or (len(rings) == len(value) > 2 and all(len(each) == 2 for each in rings)):
        value = [value]  # one polygon without the list around it, of numbers or of pairs
    return (Polygon(tuple(_ring(each, where, place) for place, each in enumerate(value))),)


def _ring(value: object, where: str, place: int) -> np.ndarray:
    """[x1, y1, x2, y2, ...], or the points as pairs."""
    here = f"{where}: polygon {place}"
    if not isinstance(value, list | array):
        raise InputError(f"{here} is {value!r:.40}, not a list of numbers")
    if isinstance(value, list) and value and isinstance(value[0], list | array):
        return points_of([list(point) if isinstance(point, array) else point for point in value], here)
    if len(value) % 2:
        raise InputError(f"{here} has {len(value)} numbers, which are no pairs of x and y")
    if isinstance(value, array):  # of numbers, and whether they are finite is asked where they are painted
        return np.array(value, np.float64).reshape(-1, 2)
    odd = [number for number in value if finite(number) is None]
    if odd:
        raise InputError(f"{here} has {odd[0]!r:.40}, which is no finite number")
    try:
        return np.array(value, np.float64).reshape(-1, 2)
    except OverflowError:
        raise InputError(f"{here} has a number that is not finite") from None


def _run_lengths(value: Mapping[str, Any], where: str) -> Rle:
    counts, given = value.get("counts"), value.get("size")
    sides = [whole(side) for side in given] if isinstance(given, list) and len(given) == 2 else []
    if len(sides) != 2 or None in sides:
        raise InputError(f"{where}: the 'size' of its run lengths is {given!r:.40}, not [height, width]")
    if isinstance(counts, str):
        if not counts.isascii():
            raise InputError(f"{where}: its run lengths are a text that is no COCO code")
        return Rle(counts.encode(), (sides[0], sides[1]))  # type: ignore[arg-type]
    lengths = [whole(count) for count in counts] if isinstance(counts, list | array) else [None]
    if any(count is None or count > MOST_ID for count in lengths):
        raise InputError(f"{where}: the 'counts' of its run lengths are neither a text nor a list of integers")
    return Rle(lengths, (sides[0], sides[1]))  # type: ignore[arg-type]


def read_box(value: object, where: str) -> Polygon | None:
    """[x, y, width, height]; None where there is none, or one without area."""
    if not isinstance(value, list) or not value:
        return None
    numbers = [finite(each) for each in value]
    if len(numbers) != 4 or None in numbers:
        raise InputError(f"{where}: 'bbox' is {value!r:.60}, not [x, y, width, height]")
    x, y, width, height = (float(each) for each in numbers if each is not None)
    return Polygon((rectangle(x, y, x + width, y + height),)) if width > 0 and height > 0 else None
