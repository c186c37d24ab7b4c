"""The `segments_info` of the COCO panoptic format, parsed once: past the readers there are no dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from upsnet.categories import Categories
from upsnet.errors import InputError


class SegmentInfo(NamedTuple):
    """One entry. Predictions are scored by their id and category alone."""

    id: int
    category_id: int  # the data set's own
    iscrowd: bool = False
    area: object = None  # as the JSON has it: a number, where all is well


def parse_segments(infos: object, where: str, truth: bool = True) -> list[SegmentInfo]:
    """As the official evaluation takes them; `truth`: with iscrowd. InputError, after `where`, for any others."""
    if not isinstance(infos, Sequence) or isinstance(infos, str):
        raise InputError(f"{where}: segments_info is not a list")
    segments = []
    for index, info in enumerate(infos):
        if not isinstance(info, Mapping):
            raise InputError(f"{where}: segments_info[{index}] is not an object")
        id = integer(info, "id", f"{where}: segments_info[{index}]")
        here = f"{where}: segment {id}"
        crowd = truth and integer(info, "iscrowd", here) == 1
        segments.append(SegmentInfo(id, integer(info, "category_id", here), crowd, info.get("area")))
    return segments


def integer(entry: Mapping[str, object], key: str, where: str) -> int:
    """entry[key] as an int. 5 and 5.0 are integers, as in panopticapi; "5", true and null are not."""
    value = entry.get(key)
    if type(value) is int:  # nearly always
        return value
    if key not in entry:
        raise InputError(f"{where}: key '{key}' is missing")
    if isinstance(value, bool) and key == "iscrowd":
        return int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise InputError(f"{where}: '{key}' is {value!r}, not an integer")


def categories_by_id(
    segments: Iterable[SegmentInfo], categories: Categories, image: object
) -> dict[int, tuple[int, bool]]:
    """The truth's segments: id -> (contiguous category, is it a crowd). Of entries with the same id the last counts.

    Raises InputError, naming `image`, for a category outside the table.
    """
    try:
        return {segment.id: (categories.index_of_id(segment.category_id), segment.iscrowd) for segment in segments}
    except InputError as error:
        raise InputError(f"image {image}: ground truth: {error}") from None
