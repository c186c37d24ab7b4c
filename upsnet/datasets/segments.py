"""The `segments_info` of the COCO panoptic format, parsed once: past the readers there are no dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from upsnet.categories import Categories
from upsnet.datasets.findings import KINDS, Report
from upsnet.errors import InputError
from upsnet.json_values import complaint, finite, flag, whole

ID_LIMIT = 1 << 24  # ids are the 24 bits of a colour: R + 256 G + 65536 B; 0 is void


Infos = Sequence[Mapping[str, Any]]  # segments_info, as JSON has it


class SegmentInfo(NamedTuple):
    """One entry. Predictions are scored by their id and category alone."""

    id: int
    category_id: int  # the data set's own
    iscrowd: bool = False
    area: float | None = None  # pixels, as the JSON has it


def read_segment(info: object, index: int, where: str, report: Report, truth: bool = True) -> SegmentInfo | None:
    """segments_info[index] of the image that `where` names. `truth`: with iscrowd and area, and an id that a PNG holds.

    None where it has no id. Another fault is reported, and a harmless value stands for what is faulty.
    """
    if not isinstance(info, Mapping):
        report("json", f"{where}: segments_info[{index}] is not an object: {info!r:.40}")
        return None
    number = whole(info.get("id"))
    if number is None:
        report("segment-id", f"{where}: segments_info[{index}]: {complaint(info, 'id')}")
        return None
    here = f"{where}: segment {number}"
    if truth and number == 0:
        report("segment-id", f"{where}: segments_info[{index}] lists id 0, which is void; give it another id")
        return None
    if truth and not 0 < number < ID_LIMIT:
        report("segment-id", f"{here}: no PNG holds this id; give it one from 1 to {ID_LIMIT - 1}")
        return None
    category = whole(info.get("category_id"))
    if category is None:
        report("unknown-category", f"{here}: {complaint(info, 'category_id')}")
    crowd, area = 0, None
    if truth:
        crowd, area = _crowd(info, here, report), finite(info.get("area"))
        if area is None and info.get("area") is not None:
            report("area", f"{here}: {complaint(info, 'area', 'a number')}")
    return SegmentInfo(number, NO_CATEGORY if category is None else category, crowd == 1, area)


NO_CATEGORY = 1 << 63  # this object: of a segment whose category was reported


def _crowd(info: Mapping[str, object], here: str, report: Report) -> int:
    crowd = flag(info.get("iscrowd", 0))
    if "iscrowd" not in info:
        report("iscrowd-missing", f"{here} has no iscrowd; 0 is taken")
    elif crowd is None:
        report("iscrowd", f"{here}: {complaint(info, 'iscrowd', '0 or 1')}")
    return crowd or 0


def parse_segments(
    infos: object, where: str, truth: bool = True, warnings: list[str] | None = None
) -> list[SegmentInfo]:
    """Those of one image for the official evaluation. InputError, after `where`, for the first that is faulty."""
    if not isinstance(infos, Sequence) or isinstance(infos, str):
        raise InputError(f"{where}: segments_info is not a list")

    def report(kind: str, text: str) -> None:
        if KINDS[kind].error:
            raise InputError(text)
        if warnings is not None:
            warnings.append(text)

    found = (read_segment(info, index, where, report, truth) for index, info in enumerate(infos))
    return [segment for segment in found if segment is not None]


def categories_by_id(
    truth: Iterable[SegmentInfo] | Infos, categories: Categories, image: object
) -> dict[int, tuple[int, bool]]:
    """The truth's segments: id -> (contiguous category, is it a crowd). Of entries with the same id the last counts.

    Raises InputError, naming `image`, for a category outside the table.
    """
    entries = list(truth)
    segments = [entry for entry in entries if isinstance(entry, SegmentInfo)]
    if len(segments) < len(entries):
        segments = parse_segments(entries, f"image {image}: ground truth")
    try:
        return {segment.id: (categories.index_of_id(segment.category_id), segment.iscrowd) for segment in segments}
    except InputError as error:
        raise InputError(f"image {image}: ground truth: {error}") from None
