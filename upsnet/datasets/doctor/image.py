"""The doctor at one image: its photo, its PNG and its segments. Runs in worker processes: numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.findings import KINDS, CategoryCount, Finding, Tally
from upsnet.datasets.places import File, is_there, together
from upsnet.datasets.segments import NO_CATEGORY, SegmentInfo
from upsnet.errors import InputError, ServerError
from upsnet.photos import read_turned, turn_words
from upsnet.run_lengths import Box, Extents, areas_and_boxes


class ImageTask(NamedTuple):
    """One image with its annotation."""

    image_id: int
    photo: File | str
    png: File | str
    size: tuple[int, int] | None  # height, width in the JSON
    segments: list[SegmentInfo]
    boxes: list[object] | None = None  # the segments' `bbox` in the JSON; None: they are not judged


def check_images(tasks: list[ImageTask], stop: bool = False) -> tuple[Tally, str | None]:
    """Everything that is wrong. stop: up to the first error, the text of which is returned too."""
    tally = Tally()
    for task in tasks:
        tally.images += 1
        for finding in check_image(task, tally):
            tally.note(*finding)
            if stop and KINDS[finding.kind].error:
                return tally, finding.text
    return tally, None


def check_image(task: ImageTask, tally: Tally, known: tuple[tuple[int, int], int] | None = None) -> Iterator[Finding]:
    """Yields the findings but for files that are not there; adds what the PNG holds to `tally`.

    known: what `size_and_orientation` said of the photo, which is then not read again.
    """
    where = f"image {task.image_id}"
    photo = ids = truth = None
    orientation = 1
    try:
        photo_file, png_file = together(task.photo, task.png)
        task = task._replace(photo=photo_file, png=png_file)
    except ServerError:
        raise  # its bucket's fault, and no finding
    except InputError:
        pass  # each is read, and said of, for itself
    try:
        photo, orientation = known or size_and_orientation(task.photo)
        if orientation != 1:
            yield Finding("exif-turned", f"{where}: the photo {task.photo} has the EXIF orientation {orientation}")
    except ServerError:
        raise  # its bucket's fault, and no finding
    except InputError as error:
        if is_there(task.photo):
            yield Finding("photo-unreadable", f"{where}: {error}")
    try:
        ids = read_panoptic_png(task.png)
        truth = areas_and_boxes(ids)
    except ServerError:
        raise  # its bucket's fault, and no finding
    except InputError as error:
        if is_there(task.png):
            yield Finding("png-unreadable", f"{where}: {error}")
    yield from check_sizes(task, photo, None if ids is None else (ids.shape[1], ids.shape[0]), orientation)
    count_segments(task, truth or {}, tally)
    if not task.segments and not (truth or {}).keys() - {0}:
        yield Finding("empty", f"{where}: no segments")
    if truth is not None:
        yield from check_segments(task, truth)


def check_sizes(
    task: ImageTask, photo: tuple[int, int] | None, png: tuple[int, int] | None, orientation: int
) -> Iterator[Finding]:
    """Width and height of the photo, which EXIF turned by `orientation`, and the PNG; None: it could not be read."""
    json = task.size and (task.size[1], task.size[0])
    named = {f"the photo {task.photo}": photo, f"the PNG {task.png}": png, "the JSON": json}
    sizes = {name: size for name, size in named.items() if size}
    if len(set(sizes.values())) > 1:
        differing = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
        values = list(sizes.values())
        turned = turn_words(orientation, values[0], next(size for size in values if size != values[0]))
        yield Finding("size", f"image {task.image_id}: sizes differ: {differing} (width x height){turned}")


def size_and_orientation(photo: File | str) -> tuple[tuple[int, int], int]:
    """Width and height as shown, after reading the whole file, and how the photo is stored: 1 upright, else an
    orientation of upsnet.photos.TURNS. InputError where upsnet.photos.read_photo has one.

    A JPEG is drafted at an eighth of its size: every byte passes the entropy decoder, so that a cut file is found just
    as in a full decode, at two thirds of the time.
    """
    found = read_turned(photo, least=lambda height, width: (max(1, height // 8), max(1, width // 8)))
    return (found.size[1], found.size[0]), found.orientation


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
