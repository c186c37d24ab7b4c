"""The reader of COCO panoptic JSONs, one for all: typed rows, and findings about what is wrong.

    report = Strict(split.json_file)  # or a doctor's Tally.note, which goes on after each fault
    chart = PanopticJson(split, report)
    for row in chart.rows(): ...

The doctor lists its findings; training, evaluation and everything else stop at the first error with the same words.
docs/format.md says what is refused, what is accepted and what is warned of.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from upsnet.categories import Categories, Category
from upsnet.datasets.findings import Report, Strict
from upsnet.datasets.places import open_files
from upsnet.datasets.segments import ID_LIMIT, NO_CATEGORY, SegmentInfo, read_segment
from upsnet.datasets.split import ShardSplit, Split
from upsnet.datasets.wrong_file import PANOPTIC, other_format
from upsnet.errors import InputError
from upsnet.files import PathLike, read_json
from upsnet.json_values import MOST_ID, breaks_line, complaint, is_visible, whole

# Files of other kinds, which are not JSON.
FILES = {
    **dict.fromkeys(
        (".yaml", ".yml"), f"; this is a YAML file; {PANOPTIC}; `upsnet data from-yolo` makes one of YOLO's"
    ),
    ".xml": f"; this is an XML file; {PANOPTIC}; `upsnet data from-cvat` makes one of CVAT's",
}
LISTS = ("images", "annotations", "categories")
MOST_CATEGORIES = 255  # label maps are bytes, and the last value means "ignored"
MOST_SEGMENTS = (1 << 15) - 1  # of an image: training's maps of instances are int16
MOST_SIDE = (1 << 31) - 1

Entries = dict[int, dict[str, Any]]  # by image id


class Row(NamedTuple):
    """One image and its truth, as the JSON has them."""

    image_id: int
    photo: str  # name in the folder of the photos
    png: str  # name in the folder of the PNGs
    segments: list[SegmentInfo]
    size: tuple[int, int] | None  # height, width, where the JSON has them
    boxes: list[object]  # each segment's `bbox`, which nothing here needs


class PanopticJson:
    """What a data set's JSON says: categories and entries at once, the rows one by one."""

    def __init__(self, split: Split | ShardSplit, report: Report) -> None:
        """Everything but the segments is looked at, and what is faulty is reported and left out. InputError for shards
        without an index."""
        self.split, self._report = split, report
        self.files = open_files(split)
        for finding in self.files.faults():
            report(*finding)
        lists = read_lists(split.json_file, report, self.files.read_json)
        self.is_readable = lists is not None  # else one finding says what the file is, and nothing is read of it
        content = lists or {key: [] for key in LISTS}
        self.further = {key: value for key, value in content.items() if key not in ("images", "annotations")}  # as read
        self.categories = read_category_entries(content["categories"], report)
        self._named = {whole(entry.get("id")) for entry in content["categories"] if isinstance(entry, dict)}
        self.images = _entries(content["images"], "images", "id", report)
        self.annotations = _entries(content["annotations"], "annotations", "image_id", report)
        for number, image in self.images.items():
            if number not in self.annotations:
                report("not-annotated", f"image {number} ({image['file_name']}) has no annotation")
        for number in self.annotations.keys() - self.images.keys():
            report("not-listed", f"image {number} is annotated but not among the images")
        _same_names("images", self.images, report)
        _same_names("annotations", self.annotations, report)

    def rows(self) -> Iterator[Row]:
        """In the order of the images: those that have an annotation."""
        absent = self.files.absences()
        useful = not self.images.keys() & self.annotations.keys()  # where there are none, something else was reported
        for number, image in self.images.items():
            if number not in self.annotations:
                continue
            where, annotation = f"image {number}", self.annotations[number]
            photo, png = image["file_name"], annotation["file_name"]
            for finding in absent(number, photo, png):
                self._report(*finding)
            size = self._size(image, where)
            segments, boxes = self._segments(annotation["segments_info"], where)
            useful = useful or any(not segment.iscrowd for segment in segments)
            yield Row(number, photo, png, segments, size, boxes)
        if not useful:
            self._report("nothing-to-learn", "no image has a segment that is no crowd: nothing can be learnt or scored")

    def _size(self, image: dict[str, Any], where: str) -> tuple[int, int] | None:
        if image.get("height") is None or image.get("width") is None:
            self._report("size-missing", f"{where}: no width or no height")
            return None
        sides = whole(image["height"]), whole(image["width"])
        for key, side in zip(("height", "width"), sides, strict=True):
            if side is None or not 0 < side <= MOST_SIDE:
                wanted = f"an integer from 1 to {MOST_SIDE}"
                self._report("size", f"{where}: {complaint(image, key, wanted)}; write the photo's {key}")
                return None
        return sides  # type: ignore[return-value]

    def _segments(self, infos: list[Any], where: str) -> tuple[list[SegmentInfo], list[object]]:
        report, known = self._report, self.categories
        if len(infos) > MOST_SEGMENTS:
            report("segment-count", f"{where}: {len(infos)} segments; the most is {MOST_SEGMENTS}")
        segments: dict[int, SegmentInfo] = {}
        boxes: list[object] = []
        stuff: set[int] = set()
        for index, info in enumerate(infos):
            segment = _plain(info) or read_segment(info, index, where, report)
            if segment is None:
                continue
            number, category_id, _, area = segment
            if number in segments:
                report("segment-twice", f"{where}: segment {number} is listed twice; give every segment its own id")
                continue
            if area is None and info.get("area") is None:
                report("area", f"{where}: segment {number} has no area; write its pixel count")
            category = known.get(category_id)
            if category is None:
                if category_id is not NO_CATEGORY and category_id not in self._named:  # else it was reported
                    unknown = f"{where}: segment {number} has the unknown category {category_id}"
                    report("unknown-category", f"{unknown}; add it to the categories")
                segment = segment._replace(category_id=NO_CATEGORY)
            elif not category.isthing:
                self._stuff(where, segment, stuff)
            segments[number] = segment
            box = info.get("bbox")
            boxes.append(box)
            if not box:
                report("bbox-missing", f"{where}: segment {number} has no bbox")
        return list(segments.values()), boxes

    def _stuff(self, where: str, segment: SegmentInfo, met: set[int]) -> None:
        """met: the stuff categories of this image so far."""
        if segment.iscrowd:
            crowd = f"{where}: segment {segment.id} of stuff category {segment.category_id} is a crowd"
            self._report("stuff-crowd", f"{crowd}; its pixels are ignored")
        if segment.category_id in met:
            self._report("stuff-twice", f"{where}: segment {segment.id}: another of stuff {segment.category_id}")
        met.add(segment.category_id)


def _plain(info: Any) -> SegmentInfo | None:
    """read_segment of an entry with nothing to say about, which nearly all are, in a third of the time."""
    try:
        number, category, crowd, area = info["id"], info["category_id"], info["iscrowd"], info["area"]
    except (KeyError, TypeError):
        return None
    plain = type(number) is type(category) is type(crowd) is type(area) is int
    if not (plain and 0 < number < ID_LIMIT and 0 <= crowd <= 1):
        return None
    return SegmentInfo(number, category, crowd == 1, area)


def read_lists(path: PathLike, report: Report, read: Callable[[], Any] | None = None) -> dict[str, Any] | None:
    """The content, with the three lists of the format, empty where one is missing; None where it is something else.

    read: what reads it (default: the file at `path`).
    """
    try:
        content = read() if read else read_json(path)
    except InputError as error:
        report("json", str(error).removeprefix(f"{path}: ") + FILES.get(os.path.splitext(path)[1].lower(), ""))
        return None
    if other := other_format(content):
        report("other-format", other)
        return None
    if not isinstance(content, dict):
        report("json", f"not a COCO panoptic file: its content is a {type(content).__name__}; {PANOPTIC}")
        return None
    if "images" not in content:
        kind = "predictions look like this" if "annotations" in content else PANOPTIC
        report("json", f"no list 'images'; {kind}; give the JSON of the ground truth")
        return None
    lists: dict[str, list[Any]] = {}
    for key in LISTS:
        found = content.get(key)
        lists[key] = found if isinstance(found, list) else []
        if not isinstance(found, list):
            report("json", f"no list '{key}'; {PANOPTIC}")
        elif not found and key != "annotations":
            report("json", f"lists no {key}")
    return content | lists


def read_category_entries(entries: list[Any], report: Report) -> dict[int, Category]:
    """By id, of the entries that are sound the first of each."""
    table: dict[int, Category] = {}
    colors: dict[tuple[int, ...], str] = {}
    for index, entry in enumerate(entries):
        try:
            category = next(iter(Categories.from_coco([entry])))
        except InputError as error:
            report("category", f"categories[{index}]{str(error).removeprefix('categories[0]')}")
            continue
        here = f"category {category.id} {category.name!r}"
        if breaks_line(category.name) or not is_visible(category.name):
            said = "its name has a line break or a control character, or nothing that is visible"
            report("category", f"{here}: {said}; write it on one line")
        if category.id in table:
            report("category", f"{here}: its id is also that of {table[category.id].name!r}; give each its own")
            continue
        if any(category.name == other.name for other in table.values()):
            report("category", f"{here}: another has this name; give each its own")
        if entry.get("color") is None:
            report("color", f"{here}: no colour")
        elif category.color in colors:
            report("color", f"{here}: the colour of {colors[category.color]!r}")
        colors.setdefault(category.color, category.name)
        table[category.id] = category
    most = MOST_CATEGORIES - all(category.isthing for category in table.values())  # without stuff: and a background
    if len(table) > most:
        report("category", f"{len(table)} categories; the most is {most}")
    if len({category.isthing for category in table.values()}) == 1:
        side = "things" if next(iter(table.values())).isthing else "stuff"
        report("one-sided", f"all {len(table)} categories are {side}")
    return table


def read_categories(path: Path) -> Categories:
    """The table of a COCO panoptic JSON, or of a bare list of categories. InputError names the file."""
    return Categories(listed_categories(path))


def listed_categories(path: Path) -> list[Category]:
    """The same in the order in which the file lists them."""
    content = read_json(path)
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list of categories; give a COCO panoptic JSON or its category list")
    if not entries:
        raise InputError(f"{path}: categories: the list is empty")
    return list(read_category_entries(entries, Strict(path)).values())


def _entries(entries: list[Any], name: str, id_key: str, report: Report) -> Entries:
    """Those that can be used, the first of each image id."""
    found: Entries = {}
    for index, entry in enumerate(entries):
        here = f"{name}[{index}]"
        if not isinstance(entry, dict):
            report("json", f"{here} is not an object: {entry!r:.40}")
            continue
        number = whole(entry.get(id_key))
        if number is None:
            report("json", f"{here}: {complaint(entry, id_key)}")
        elif not -MOST_ID - 1 <= number <= MOST_ID:
            report("json", f"{here}: the image id {number!s:.40} has more than 64 bits")
        elif number in found:
            twice, what = TWICE[name]
            report(twice, f"image {number} {what}: {here} repeats its id")
        elif fault := _fault(entry, name):
            report("json", f"{here}: image {number}: {fault}")
        else:
            found[number] = entry
    return found


TWICE = {"images": ("image-twice", "is listed twice"), "annotations": ("annotation-twice", "has two annotations")}


def _fault(entry: dict[str, Any], name: str) -> str | None:
    """What is wrong with the values that place an entry: a file name inside the folder, a list of segments."""
    value = entry.get("file_name")
    if not isinstance(value, str):
        return complaint(entry, "file_name", "a text")
    steps = value.split("/")
    if steps[-1] in ("", ".") or breaks_line(value):
        return f"'file_name' {value!r:.60} names no file"
    if steps[0] == "" or ".." in steps:
        return f"'file_name' {value!r:.60} is not inside the folder; write it as seen from there"
    if name == "annotations" and not isinstance(entry.get("segments_info"), list):
        return complaint(entry, "segments_info", "a list")
    return None


def _same_names(name: str, entries: Entries, report: Report) -> None:
    """Names that differ in their suffix alone are the same: the PNG of a prediction takes its name from the photo."""
    stems = {number: os.path.splitext(os.path.normpath(entry["file_name"]))[0] for number, entry in entries.items()}
    counts = Counter(stems.values())
    for number, stem in stems.items() if len(counts) < len(stems) else ():
        if counts[stem] > 1:
            named = f"{name} has {counts[stem]} entries named {entries[number]['file_name']}"
            report("file-twice", f"image {number}: {named} (suffixes do not count); give each its own file")
