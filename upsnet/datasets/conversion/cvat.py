"""CVAT's own XML, "CVAT for images 1.1" and "CVAT for video 1.1" (docs.cvat.ai, "XML annotation format"), of a task, a
job or a project -> shapes.

Read are masks, polygons and ellipses; boxes are boxes, turned or not; polylines, points, cuboids, skeletons and tags
hold no pixels. Shapes of one label and one group are one object, as in CVAT's COCO export. Of overlapping shapes the
one with the higher z_order is on top, then the later one, as CVAT draws them. The attribute is_crowd makes a crowd, as
in CVAT's COCO export. A label has a colour, but is neither thing nor stuff. Coordinates are the photo's, with 0 at the
upper left pixel's corner, and have two decimals. Polygons have no holes: draw a mask, or draw what shows through on
top. The subsets of a project are its splits. A mask comes back exactly.

In a video's tracks CVAT writes the shape of every frame, those between keyframes too. Frames are called
frame_000000, ..., as CVAT exports them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import typer

from upsnet.datasets.conversion.class_files import ClassRow, parse_color
from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.cvat_xml import PIXELS, Attributes, Entry, Index, Place, entries, scan
from upsnet.datasets.conversion.drawn import Part, class_name, clockwise, join, rectangle
from upsnet.datasets.conversion.labels import (
    Bitmap,
    Item,
    LabelClass,
    Labels,
    LeftOut,
    Polygon,
    Region,
    Size,
    Source,
    without_shared_colors,
)
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.conversion.regions import check_points
from upsnet.datasets.conversion.table import nearest
from upsnet.errors import InputError
from upsnet.sources import PHOTO_SUFFIXES

CROWD = ("is_crowd", "iscrowd", "crowd")
SUBSETS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
HOLDING = ("any", "mask", "polygon", "ellipse", "rectangle", "")  # types of labels whose shapes hold pixels
ALL = "all"  # the split of a file without subsets
FOR_IMAGES = "export it as 'CVAT for images 1.1' with its images"


def read(
    path: Annotated[Path, typer.Argument(help="CVAT's annotations.xml, or the unpacked export that holds it.")],
    photos: Annotated[Path | None, typer.Option(help="The folder of the photos (default: images beside it).")] = None,
    ungrouped: Annotated[bool, typer.Option("--ungrouped", help="Each shape of a group is an object.")] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Photos without any shape are images without objects.")
    ] = False,
) -> Source:
    """CVAT's XML, for images or for video, to COCO panoptic. The subsets of a project become splits."""
    file = _find(path)
    index = scan(file)
    if index.images and index.tracks:
        raise InputError(f"{file}: has <image>s and <track>s, which no export of CVAT has; give one of the two")
    if not index.images and not index.tracks:
        raise InputError(f"{file}: has neither <image> nor <track>; {FOR_IMAGES}")
    source = Source("CVAT", file, [], {}, overlap="later")
    source.classes = _classes(source, index)
    beside = file.parent / "images"
    found = _Photos(photos or (beside if beside.is_dir() else file.parent))
    labels = partial(read_labels, file=file, names=frozenset(each.name for each in source.classes), ungrouped=ungrouped)
    if index.images:
        free = _add_images(source, index, found, labels, unlabelled)
    else:
        free = _add_frames(source, index, found, labels, unlabelled)
    source.remarks += found.folder.remarks()
    _remark_free(source, free, found)
    return source


def _find(path: Path) -> Path:
    """The XML."""
    if path.is_file():
        if path.suffix.lower() == ".zip":
            raise InputError(f"{path}: unpack the export, and give its folder")
        if path.suffix.lower() == ".json":
            raise InputError(f"{path}: is no XML; `upsnet data from-instances` reads CVAT's COCO export")
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give CVAT's annotations.xml")
    named = path / "annotations.xml"
    files = [named] if named.is_file() else sorted(each for each in path.iterdir() if each.suffix.lower() == ".xml")
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(f"{path}: holds several XMLs ({files[0].name}, {files[1].name}, ...); give one of them")
    coco = sorted((path / "annotations").glob("instances_*.json"))
    if coco:
        raise InputError(f"{path}: is CVAT's COCO export; `upsnet data from-instances {coco[0]}` reads it")
    below = sorted(path.glob("*/annotations.xml"))
    if below:
        cure = "give one of them, or export the project, which has all tasks in one"
        raise InputError(f"{path}: has exports in its folders, as {below[0]}; {cure}")
    raise InputError(f"{path}: holds no annotations.xml; {FOR_IMAGES}")


def _classes(source: Source, index: Index) -> list[LabelClass]:
    """The labels of <meta>, without those that hold no pixels; or those that shapes have, where <meta> has none."""
    file = source.path
    listed = [each for each in index.labels if "parent" not in each]  # the others are points of skeletons
    kept = [each for each in listed if each.get("type", "") in HOLDING or each.get("name") in index.used]
    if others := [each for each in listed if each not in kept]:
        about = "labels are of a type that holds no pixels, and no classes"
        source.remarks.append(
            f"{len(others):,} {about}, as {others[0].get('name', '')!r:.40} ({others[0]['type']:.20})"
        )
    if not kept:
        kept = [{"name": name} for name in sorted(index.used)]
    classes = []
    for number, each in enumerate(kept, 1):
        where = f"{file}: label {number} of <meta>"
        name = class_name(each.get("name"), "name", where)
        value = each.get("color", "")
        color = parse_color(value) if value else None
        if value and color is None:
            raise InputError(f"{where} ({name}): its color is {value!r:.40}, not #rrggbb")
        classes.append(LabelClass(name, name, number, color, void=ClassRow(name).is_void))
    if not classes:
        raise InputError(f"{file}: no label of it has shapes with pixels: masks, polygons, ellipses or boxes")
    return without_shared_colors(classes)


class _Photos:
    """The photos, as an XML calls them."""

    def __init__(self, path: Path) -> None:
        self.folder = PhotoFolder(path)
        self.stems: dict[str, list[str]] = {}  # a video's frames have no suffix in the XML
        for name in self.folder.names():
            self.stems.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
        self.used: Counter[str] = Counter()

    def find(self, name: str, subset: str) -> str:
        """Its name below the folder: in the subset's folder, or where the name itself leads. InputError: nowhere."""
        plain = name.replace("\\", "/")
        for below in (f"{subset}/{plain}", plain) if subset else (plain,):
            if below in self.folder:
                return below
            if not below.lower().endswith(PHOTO_SUFFIXES) and len(self.stems.get(below, [])) == 1:
                return self.stems[below][0]
        return self.folder.find(name)

    def item(self, photo: str, subset: str, read_them: partial[Labels]) -> Item:
        """Its name is that in the split's folder."""
        return Item(self.folder.path(photo), photo.removeprefix(f"{subset}/") if subset else photo, read_them)


def _add_images(source: Source, index: Index, photos: _Photos, labels: partial[Labels], unlabelled: bool) -> list[str]:
    """Of "CVAT for images". Returns the photos without any shape."""
    splits = _split_names(source.path, [each.attributes.get("subset", "") for each in index.images])
    found = []
    for image in index.images:
        where = f"line {image.place.line}"
        name, subset = image.attributes.get("name", ""), image.attributes.get("subset", "")
        try:
            size = _sides(image.attributes)
            photo = photos.find(name, subset)
        except InputError as error:
            source.faults.append(f"{where}: {error}; give the folder of the photos as --photos")
            continue
        photos.used[photo] += 1
        found.append((image, photo, subset, size))
    empty = []
    for image, photo, subset, size in found:
        if photos.used[photo] > 1:
            cure = "another <image> is of the same photo; give the tasks' photos names of their own"
            source.faults.append(f"line {image.place.line}: {photo}: {cure}")
        elif image.is_empty and not unlabelled:
            empty.append(photo)
        else:
            read_them = partial(labels, places=[image.place], drawn_on=size)
            source.splits.setdefault(splits[subset], []).append(photos.item(photo, subset, read_them))
    return empty


def _add_frames(source: Source, index: Index, photos: _Photos, labels: partial[Labels], unlabelled: bool) -> list[str]:
    """Of "CVAT for video". Returns the photos without any shape."""
    if len({each.get("task_id") for each in index.tracks}) > 1:
        raise InputError(
            f"{source.path}: has the tracks of several tasks, whose frames are told by number; {FOR_IMAGES}"
        )
    subset = index.tracks[0].get("subset", "")
    split = _split_names(source.path, [subset])[subset]
    frames = _frame_photos(photos)
    if not frames:
        about = "tells frames by number, and no photo is called frame_000000, frame_000001, ..."
        raise InputError(f"{source.path}: {about} in {photos.folder.folder}; {FOR_IMAGES}")
    numbers = sorted(frames.keys() | index.frames.keys())
    lacking: dict[int, str] = {}
    for first, last, track in index.gaps:
        for number in numbers[bisect_left(numbers, first) : bisect_right(numbers, last)]:
            lacking.setdefault(number, track)
    empty = []
    for number in numbers:
        places, photo = index.frames.get(number, []), frames.get(number)
        if photo is None:
            source.faults.append(f"line {places[0].line}: frame_{number:06d} is not in {photos.folder.folder}")
            continue
        photos.used[photo] += 1
        if number in lacking:
            about = f"{lacking[number]} has shapes before and after it, and none on it"
            source.faults.append(f"{photo}: {about}; {FOR_IMAGES}, which has every frame")
        elif not places and not unlabelled:
            empty.append(photo)
        else:
            read_them = partial(labels, places=places, drawn_on=index.frame_size)
            source.splits.setdefault(split, []).append(photos.item(photo, subset, read_them))
    return empty


def _frame_photos(photos: _Photos) -> dict[int, str]:
    """A video's photos, by number."""
    frames = {}
    for stem, names in photos.stems.items():
        match = re.fullmatch(r"frame_([0-9]{1,9})", PurePosixPath(stem).name)
        if match and len(names) == 1:
            frames[int(match[1])] = names[0]
    return frames


def _split_names(file: Path, subsets: Iterable[str]) -> dict[str, str]:
    """What each subset's split is called: train, val, test in the words of this project."""
    names = {subset: SUBSETS.get(subset.casefold(), subset) for subset in subsets}
    if names.keys() <= {"", "default"}:
        return dict.fromkeys(names, ALL)
    names = {subset: name or ALL for subset, name in names.items()}
    twice = next((each for each, count in Counter(names.values()).items() if count > 1), None)
    if twice is not None:
        both = " and ".join(subset for subset, name in names.items() if name == twice)
        raise InputError(f"{file}: the subsets {both} are both {twice}; give them one name in CVAT")
    return names


def _remark_free(source: Source, empty: Sequence[str], photos: _Photos) -> None:
    source.splits = source.splits or {ALL: []}
    unlisted = [name for name in photos.folder.names() if not photos.used[name]]
    source.remark(empty, "photos have no shape and are left out (--unlabelled: they show no object)")
    source.remark(unlisted, "photos are not in the XML and are left out")


def _sides(attributes: Attributes) -> Size | None:
    """height, width; None where the XML has none."""
    texts = [attributes.get(key, "") for key in ("height", "width")]
    if not any(texts):
        return None
    if not all(text.isascii() and text.isdecimal() and 0 < len(text) < 10 for text in texts):
        raise InputError(
            f"height and width of the <image> are {texts[0]!r:.20} and {texts[1]!r:.20}, not whole numbers"
        )
    return int(texts[0]), int(texts[1])


def read_labels(
    size: Size, file: Path, names: frozenset[str], ungrouped: bool, places: Sequence[Place], drawn_on: Size | None
) -> Labels:
    """The shapes at some places of the XML, of a photo of height, width `size`. InputError names the line."""
    drawn_on = drawn_on or size
    parts: list[tuple[float, Hashable, Part]] = []
    left_out: list[LeftOut] = []
    for entry, track in entries(file, places):
        about = entry.attributes if track is None else track
        label = about.get("label")
        where = f"{file.name}: line {entry.line} ({label or entry.kind})"
        if entry.kind not in PIXELS:
            left_out.append(LeftOut(entry.kind, where))
            continue
        if label not in names:
            raise InputError(f"{where}: <meta> has no label {label!r:.60}; {nearest(str(label), sorted(names))}")
        group = about.get("group_id", "0")
        crowd = any(entry.values.get(name, "").casefold() in ("true", "1") for name in CROWD)
        region = _region(entry, drawn_on, where)
        part = Part(label, (region,), where, crowd, is_box=entry.kind == "box")
        z_order = _number(entry.attributes, "z_order", where, 0.0)
        parts.append((z_order, None if ungrouped or group in ("", "0") else group, part))
    parts.sort(key=lambda each: each[0])
    shapes, boxes = join([(group, part) for _, group, part in parts])
    return Labels(shapes, drawn_on, [*left_out, *boxes])


def _number(attributes: Attributes, key: str, where: str, default: float | None = None) -> float:
    text = attributes.get(key)
    if text is None and default is not None:
        return default
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: '{key}' is {text!r:.40}, not a number")
    return number


def _region(entry: Entry, size: Size, where: str) -> Region:
    attributes = entry.attributes
    if entry.kind == "mask":
        return _mask(attributes, size, where)
    if entry.kind == "polygon":
        return Polygon((_points(attributes.get("points"), where),))
    angle = math.radians(_number(attributes, "rotation", where, 0.0))
    if entry.kind == "ellipse":
        x, y, width, height = (_number(attributes, key, where) for key in ("cx", "cy", "rx", "ry"))
        return _ellipse(np.array([x, y]), np.array([width, height]), angle, size, where)
    x1, y1, x2, y2 = (_number(attributes, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
    ring = rectangle(x1, y1, x2, y2)
    if angle:
        middle = check_points(ring, size, where).mean(0)
        ring = (ring - middle) @ clockwise(angle) + middle
    return Polygon((ring,))


def _points(text: str | None, where: str) -> np.ndarray:
    """ "x,y;x,y" -> float64 N x 2."""
    try:
        points = [[float(number) for number in pair.split(",")] for pair in (text or "").split(";") if pair.strip()]
    except ValueError:
        points = [[]]
    if text is None or any(len(point) != 2 for point in points):
        raise InputError(f"{where}: 'points' is {text!r:.40}, not x,y;x,y;...")
    return np.array(points, np.float64).reshape(-1, 2)


def _ellipse(center: np.ndarray, radii: np.ndarray, angle: float, size: Size, where: str) -> Bitmap:
    """The pixels whose middle lies in it."""
    if (radii <= 0).any():
        return Bitmap(np.zeros((0, 0), bool))
    reach = radii.max()
    check_points(np.array([center - reach, center + reach]), size, where)
    low = np.clip(np.floor(center - reach).astype(int), 0, size[::-1])
    high = np.clip(np.ceil(center + reach).astype(int), low, size[::-1])
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    own = (np.stack((x, y), -1) - center) @ clockwise(angle).T / radii
    return Bitmap((own**2).sum(-1) <= 1, int(low[0]), int(low[1]))


def _mask(attributes: Attributes, size: Size, where: str) -> Bitmap:
    """Run lengths, row by row of its box: without, with, without, ..."""
    keys = ("left", "top", "width", "height")
    left, top, width, height = sides = [_number(attributes, key, where) for key in keys]
    if any(side != int(side) for side in sides) or not (0 < width <= size[1] and 0 < height <= size[0]):
        box = ", ".join(f"{key} {side:g}" for key, side in zip(keys, sides, strict=True))
        raise InputError(f"{where}: the mask's box ({box}) does not fit a photo of {size[1]} x {size[0]}")
    check_points(np.array([[left, top]]), size, where)
    text, area = attributes.get("rle", ""), int(width * height)
    try:
        runs = [int(run) for run in text.split(",")]
    except ValueError:
        raise InputError(f"{where}: 'rle' is {text!r:.40}, not lengths with commas between") from None
    if min(runs) < 0 or sum(runs) != area:
        raise InputError(f"{where}: 'rle' is of {sum(runs)} pixels, its box has {width:g} x {height:g}")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(int(height), int(width))
    return Bitmap(mask, int(left), int(top))


main = converter(read)
