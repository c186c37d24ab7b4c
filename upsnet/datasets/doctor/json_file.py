"""The doctor at the JSON and the folders of a split: structure, pairs and names, before any image is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from upsnet.categories import Categories, Category
from upsnet.datasets.coco_format import LISTS
from upsnet.datasets.doctor.findings import Finding, Tally, is_integer
from upsnet.datasets.doctor.image import ImageTask
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.files import read_json

MOST_CATEGORIES = 255  # label maps are bytes, and the last value means "ignored"


def find_splits(folder: Path) -> list[Split]:
    """The data sets in a folder, in its annotations/ and in its gtFine/: X.json with panoptic_X beside it, and
    panoptic_X.json and cityscapes_panoptic_X.json with a folder of that name.

    Raises InputError when there is none.
    """
    places = [folder, folder / "annotations", folder / "gtFine"]
    found = sorted(path for place in places for path in place.glob("*.json"))
    splits = [open_split(path) for path in found if Split.usual(path).segments.is_dir()]
    if not splits:
        raise InputError(
            f"{folder}: no data set in COCO panoptic format: no X.json with a folder panoptic_X, "
            f"nor annotations/panoptic_X.json with a folder of that name; give the JSON with --gt-folder and --images"
        )
    return splits


def open_split(gt_json: Path, gt_folder: Path | None = None, images: Path | None = None) -> Split:
    """The split of a JSON, in the folders given or the usual ones. InputError when one is missing."""
    split = Split.usual(gt_json, gt_folder, images)
    for folder, what in ((split.segments, "the PNGs of"), (split.images, "the photos of")):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; {what} {gt_json} are looked for there unless you say where")
    return split


class Chart(NamedTuple):
    """What the JSON says: the categories by their ids, and every image that has an annotation of its own."""

    categories: dict[int, Category]
    tasks: list[ImageTask]


def read_chart(split: Split, tally: Tally) -> Chart:
    """Reads the JSON, adds its findings to `tally` and goes on with what is sound."""
    try:
        content = read_json(split.json_file)
    except InputError as error:
        tally.report([Finding("json", str(error))])
        return Chart({}, [])
    if not isinstance(content, dict):
        tally.report([Finding("json", f"{split.json_file}: its content is not an object")])
        return Chart({}, [])
    for key in LISTS:
        if not isinstance(content.get(key), list):
            tally.report([Finding("json", f"{split.json_file}: no list '{key}'")])
            content[key] = []
    categories = _categories(content["categories"], tally)
    images = _entries(content["images"], "images", "id", ("file_name",), tally)
    annotations = _entries(content["annotations"], "annotations", "image_id", ("file_name", "segments_info"), tally)
    if not content["images"]:
        tally.report([Finding("json", f"{split.json_file}: lists no images")])
    alone = [n for n in images if n not in annotations]
    tally.report(Finding("not-annotated", f"image {n} ({images[n]['file_name']})") for n in alone)
    tally.report(Finding("not-listed", f"image {n}") for n in annotations if n not in images)
    tally.report(_same_names("images", images))
    tally.report(_same_names("annotations", annotations))
    tally.report(_unlisted("photo-unlisted", split.images, images))
    tally.report(_unlisted("png-unlisted", split.segments, annotations))
    return Chart(categories, [_task(split, n, images[n], annotations[n]) for n in images if n in annotations])


def _task(split: Split, image_id: int, image: dict[str, Any], annotation: dict[str, Any]) -> ImageTask:
    return ImageTask(
        image_id,
        str(split.images / image["file_name"]),
        str(split.segments / annotation["file_name"]),
        image.get("width"),
        image.get("height"),
        annotation["segments_info"],
    )


def _categories(entries: list[Any], tally: Tally) -> dict[int, Category]:
    """Of the entries that are sound, the first of each id."""
    table: dict[int, Category] = {}
    colors: dict[tuple[int, ...], str] = {}
    for entry in entries:
        try:
            category = next(iter(Categories.from_coco([entry])))
        except InputError as error:
            shown = entry.get("id") if isinstance(entry, dict) else entry
            tally.report([Finding("category", f"category {shown!r:.40}: {str(error).removeprefix('categories[0]: ')}")])
            continue
        here = f"category {category.id} '{category.name}'"
        if entry["isthing"] not in (0, 1):
            tally.report([Finding("category", f"{here}: isthing is {entry['isthing']!r:.40}, not 0 or 1")])
        if category.id in table:
            tally.report([Finding("category", f"{here}: its id is also that of '{table[category.id].name}'")])
            continue
        if any(category.name == other.name for other in table.values()):
            tally.report([Finding("category", f"{here}: another has this name")])
        if "color" not in entry:
            tally.report([Finding("color", f"{here}: none")])
        elif category.color in colors:
            tally.report([Finding("color", f"{here}: the colour of '{colors[category.color]}'")])
        colors.setdefault(category.color, category.name)
        table[category.id] = category
    if len(table) > MOST_CATEGORIES:
        tally.report([Finding("category", f"{len(table)} categories; the most is {MOST_CATEGORIES}")])
    if len({category.isthing for category in table.values()}) == 1:
        side = "things" if next(iter(table.values())).isthing else "stuff"
        tally.report([Finding("one-sided", f"all {len(table)} categories are {side}")])
    return table


def _entries(
    entries: list[Any], name: str, id_key: str, keys: tuple[str, ...], tally: Tally
) -> dict[int, dict[str, Any]]:
    """By image id: the entries that have `keys` of the right type, the first of each id."""
    twice = {"images": "image-twice", "annotations": "annotation-twice"}[name]
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        number = entry.get(id_key) if isinstance(entry, dict) else None
        fault = _fault(entry, keys)
        if not is_integer(number):
            tally.report([Finding("json", f"{name}[{index}]: {id_key} {number!r:.40} is not an integer")])
        elif number in found:
            tally.report([Finding(twice, f"image {number}: {name}[{index}] repeats it")])
        elif fault:
            tally.report([Finding("json", f"{name}[{index}]: image {number}: {fault}")])
        else:
            found[number] = entry
    return found


def _fault(entry: object, keys: tuple[str, ...]) -> str | None:
    """What is wrong with the values of `keys`: a file name inside the folder, a list of segments."""
    for key in keys:
        value = entry.get(key) if isinstance(entry, dict) else None
        if key == "segments_info" and not isinstance(value, list):
            return "no list 'segments_info'"
        if key == "file_name":
            if not isinstance(value, str) or not PurePosixPath(value).name or "\0" in value:
                return f"file_name {value!r:.60} is not one"
            if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
                return f"file_name {value!r:.60} is not inside the folder"
    return None


def _same_names(name: str, entries: dict[int, dict[str, Any]]) -> Iterator[Finding]:
    """Names that differ in their suffix alone are the same: the PNG of a prediction takes its name from the photo."""
    stems = {number: str(PurePosixPath(entry["file_name"]).with_suffix("")) for number, entry in entries.items()}
    counts = Counter(stems.values())
    for number, stem in stems.items():
        if counts[stem] > 1:
            file_name = entries[number]["file_name"]
            yield Finding("file-twice", f"image {number}: {name} has {counts[stem]} entries named {file_name}")


def _unlisted(kind: str, folder: Path, entries: dict[int, dict[str, Any]]) -> Iterator[Finding]:
    """Files in the folder and below that no entry names; hidden ones do not count."""
    listed = {os.path.normpath(entry["file_name"]) for entry in entries.values()}
    for place, _, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith(".") and os.path.normpath(os.path.join(below, name)) not in listed:
                yield Finding(kind, os.path.join(place, name))
