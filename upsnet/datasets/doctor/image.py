"""The doctor at one image: its photo, its PNG and its segments. Runs in worker processes: numpy and Pillow only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from PIL import Image

from upsnet.datasets.coco_format import ID_LIMIT, read_panoptic_png
from upsnet.datasets.doctor.findings import CategoryCount, Finding, Tally, is_integer
from upsnet.errors import InputError
from upsnet.photos import MAX_PIXELS, SWAPPED, load_pixels, read_turned, reading_photo, turn_words
from upsnet.run_lengths import Box, Extents, areas_and_boxes


class ImageTask(NamedTuple):
    """One image with its annotation, as the JSON has them."""

    image_id: int
    photo: str
    png: str
    width: object
    height: object
    segments: list[object]


def check_images(tasks: list[ImageTask], things: Mapping[int, bool]) -> Tally:
    """things: category id -> is it a thing."""
    tally = Tally()
    for task in tasks:
        tally.images += 1
        tally.report(check_image(task, things, tally))
    return tally


def check_image(task: ImageTask, things: Mapping[int, bool], tally: Tally) -> Iterator[Finding]:
    """Yields the findings; adds what the PNG holds to `tally`."""
    where = f"image {task.image_id}"
    sizes: dict[str, tuple[object, object]] = {}
    orientation = 1
    try:
        sizes[f"the photo {task.photo}"], orientation = size_and_orientation(task.photo)
        if orientation != 1:
            yield Finding("exif-turned", f"{where}: the photo {task.photo} has the EXIF orientation {orientation}")
    except InputError as error:
        yield Finding("photo-unreadable" if os.path.isfile(task.photo) else "photo-missing", f"{where}: {error}")
    truth = None
    try:
        ids = read_panoptic_png(task.png)
        sizes[f"the PNG {task.png}"] = ids.shape[1], ids.shape[0]
        truth = areas_and_boxes(ids)
    except InputError as error:
        yield Finding("png-unreadable" if os.path.isfile(task.png) else "png-missing", f"{where}: {error}")
    if task.width is None or task.height is None:
        yield Finding("size-missing", f"{where}: no width or no height")
    else:
        sizes["the JSON"] = task.width, task.height
    values = list(sizes.values())
    if any(size != values[0] for size in values[1:]):
        differing = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
        turned = turn_words(orientation, values[0], next(size for size in values if size != values[0]))
        yield Finding("size", f"{where}: {differing}{turned}")
    yield from check_segments(where, task.segments, things, truth, tally)


def photo_size(path: str) -> tuple[int, int]:
    """Width and height as shown, after reading the whole file. InputError where upsnet.photos.read_photo has one."""
    return size_and_orientation(path)[0]


def size_and_orientation(path: str) -> tuple[tuple[int, int], int]:
    """`photo_size`, and how the photo is stored: 1 upright, else an orientation of upsnet.photos.TURNS.

    A JPEG is decoded at an eighth of its size: every byte passes the entropy decoder, so that a cut file is found just
    as in a full decode, at two thirds of the time.
    """
    with reading_photo(path), Image.open(path) if os.path.isfile(path) else nullcontext() as image:
        if image and image.format == "JPEG" and image.mode in ("RGB", "L") and image.width * image.height <= MAX_PIXELS:
            width, height = image.size
            image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
            orientation = load_pixels(image)
            return (height, width) if orientation in SWAPPED else (width, height), orientation
    photo, orientation = read_turned(path)
    return (photo.shape[1], photo.shape[0]), orientation


def check_segments(
    where: str, segments: list[object], things: Mapping[int, bool], in_png: Extents | None, tally: Tally
) -> Iterator[Finding]:
    """in_png: area and box of its ids; None: it could not be read, so that areas and boxes are not judged."""
    truth = dict(in_png or {})
    void_area, _ = truth.pop(0, (0, None))
    tally.void_pixels += void_area
    if not segments and not truth:
        yield Finding("empty", f"{where}: no segments")
    seen: set[int] = set()
    categories: set[int] = set()
    for segment in segments:
        if not isinstance(segment, dict):
            yield Finding("json", f"{where}: a segment that is not an object: {segment!r:.40}")
            continue
        number = segment.get("id")
        if not is_integer(number) or not 1 <= number < ID_LIMIT:
            yield Finding("segment-id", f"{where}: segment id {number!r:.40}")
            continue
        here = f"{where}: segment {number}"
        if number in seen:
            yield Finding("segment-twice", here)
            continue
        seen.add(number)
        pixels = truth[number][0] if number in truth else 0
        yield from check_category(here, segment, things, categories, pixels, tally)
        if number in truth:
            yield from check_extent(here, segment, *truth[number])
        elif in_png is not None:
            yield Finding("only-json", f"{here} is not in the PNG")
    if in_png is not None:
        listed = sorted(truth.keys() - seen)
        yield from (Finding("only-png", f"{where}: segment {n} ({truth[n][0]} pixels)") for n in listed)


def check_category(
    here: str, segment: dict[str, Any], things: Mapping[int, bool], categories: set[int], pixels: int, tally: Tally
) -> Iterator[Finding]:
    """Category and crowd flag of a segment, and its place in the counts. categories: those met in the image so far."""
    category, crowd = segment.get("category_id"), segment.get("iscrowd")
    if isinstance(crowd, bool) or crowd not in (0, 1):
        yield Finding("iscrowd", f"{here} has iscrowd {crowd!r:.40}")
    if not is_integer(category) or category not in things:
        yield Finding("unknown-category", f"{here} has category {category!r:.40}")
        return
    count = tally.categories.setdefault(category, CategoryCount())
    count.add(CategoryCount(1, int(crowd == 1), int(category not in categories), pixels))
    if not things[category]:
        if crowd == 1:
            yield Finding("stuff-crowd", f"{here} of stuff category {category}")
        if category in categories:
            yield Finding("stuff-twice", f"{here}: another of stuff category {category}")
    categories.add(category)


def check_extent(here: str, segment: dict[str, Any], area: int, box: Box) -> Iterator[Finding]:
    if segment.get("area") != area:
        yield Finding("area", f"{here} has area {segment.get('area')!r:.40}; in the PNG {area}")
    bbox = segment.get("bbox")
    if not bbox:
        yield Finding("bbox-missing", here)
    elif not isinstance(bbox, list) or tuple(bbox) != box:
        yield Finding("bbox", f"{here} has bbox {bbox!r:.60}; in the PNG {list(box)}")
