"""The doctor at one image: its photo, its PNG and its segments. Runs in worker processes: numpy and Pillow only."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import ExifTags, Image

from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.findings import KINDS, CategoryCount, Finding, Tally
from upsnet.datasets.segments import NO_CATEGORY, SegmentInfo
from upsnet.errors import InputError, first_line
from upsnet.photos import DECODE_ERRORS, MAX_PIXELS, read_photo
from upsnet.run_lengths import Box, Extents, areas_and_boxes

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageTask(NamedTuple):
    """One image with its annotation."""

    image_id: int
    photo: str
    png: str
    size: tuple[int, int] | None  # height, width in the JSON
    segments: list[SegmentInfo]
    boxes: list[object] | None = None  # the segments' `bbox` in the JSON; None: they are not judged


def check_images(tasks: list[ImageTask], stop: bool = False) -> tuple[Tally, str | None]:
    """Everything that is wrong. stop: up to the first error, the text of which is returned too."""
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about oddities of EXIF and about sizes that are checked here
        for task in tasks:
            tally.images += 1
            for finding in check_image(task, tally):
                tally.note(*finding)
                if stop and KINDS[finding.kind].error:
                    return tally, finding.text
    return tally, None


def check_image(task: ImageTask, tally: Tally) -> Iterator[Finding]:
    """Yields the findings but for files that are not there; adds what the PNG holds to `tally`."""
    where = f"image {task.image_id}"
    photo = ids = truth = None
    try:
        photo = photo_size(task.photo)
    except InputError as error:
        if os.path.isfile(task.photo):
            yield Finding("photo-unreadable", f"{where}: {error}")
    try:
        ids = read_panoptic_png(task.png)
        truth = areas_and_boxes(ids)
    except InputError as error:
        if os.path.isfile(task.png):
            yield Finding("png-unreadable", f"{where}: {error}")
    yield from check_sizes(task, photo, None if ids is None else (ids.shape[1], ids.shape[0]))
    count_segments(task, truth or {}, tally)
    if not task.segments and not (truth or {}).keys() - {0}:
        yield Finding("empty", f"{where}: no segments")
    if truth is not None:
        yield from check_segments(task, truth)


def check_sizes(task: ImageTask, photo: tuple[int, int] | None, png: tuple[int, int] | None) -> Iterator[Finding]:
    """Width and height of the photo and the PNG; None: it could not be read."""
    json = task.size and (task.size[1], task.size[0])
    named = {f"the photo {task.photo}": photo, f"the PNG {task.png}": png, "the JSON": json}
    sizes = {name: size for name, size in named.items() if size}
    if len(set(sizes.values())) > 1:
        differing = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
        yield Finding("size", f"image {task.image_id}: sizes differ: {differing} (width x height)")


def photo_size(path: str) -> tuple[int, int]:
    """Width and height as shown, after reading the whole file. InputError where upsnet.photos.read_photo has one.

    A JPEG is decoded at an eighth of its size: every byte passes the entropy decoder, so that a cut file is found just
    as in a full decode, at two thirds of the time.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "JPEG" and image.mode in ("RGB", "L") and width * height <= MAX_PIXELS:
                image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
                image.load()
                turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
                return (height, width) if turned else (width, height)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from error
    photo = read_photo(path)
    return photo.shape[1], photo.shape[0]


def check_segments(task: ImageTask, truth: Extents) -> Iterator[Finding]:
    """The JSON's segments against `truth`, the areas and boxes in the PNG."""
    where = f"image {task.image_id}"
    boxes = task.boxes or [None] * len(task.segments)
    for segment, box in zip(task.segments, boxes, strict=True):
        if segment.id in truth:
            yield from check_extent(f"{where}: segment {segment.id}", segment, box, *truth[segment.id])
        else:
            yield Finding("only-json", f"{where}: segment {segment.id} is in the JSON and not in the PNG {task.png}")
    for number in sorted(truth.keys() - {segment.id for segment in task.segments} - {0}):
        pixels = f"segment {number} ({truth[number][0]} pixels)"
        yield Finding("only-png", f"{where}: {pixels} is in the PNG {task.png} and not in the JSON")


def check_extent(here: str, segment: SegmentInfo, bbox: object, area: int, box: Box) -> Iterator[Finding]:
    if segment.area not in (None, area):
        yield Finding("area", f"{here} has area {segment.area!r:.40}; in the PNG {area}; write this")
    if bbox and (not isinstance(bbox, list) or tuple(bbox) != box):
        yield Finding("bbox", f"{here} has bbox {bbox!r:.60}; in the PNG {list(box)}")


def count_segments(task: ImageTask, truth: Extents, tally: Tally) -> None:
    tally.void_pixels += truth.get(0, (0,))[0]
    met: set[int] = set()
    for segment in task.segments:
        if segment.category_id != NO_CATEGORY:
            pixels = truth.get(segment.id, (0,))[0]
            count = tally.categories.setdefault(segment.category_id, CategoryCount())
            count.add(CategoryCount(1, int(segment.iscrowd), int(segment.category_id not in met), pixels))
            met.add(segment.category_id)
