"""One image of the page: its photo, and the truth drawn over it. Runs in worker processes."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.folder import Record, truth_result
from upsnet.datasets.places import is_there
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.photos import read_photo
from upsnet.pictures import embed, reduced

SIDE = 800  # no picture has a longer one


class Picture(NamedTuple):
    """`photo` and `overlay` are data: addresses; None: there is none, and `trouble` says why."""

    record: Record
    photo: str | None = None
    overlay: str | None = None
    void: float = 0.0  # share of the pixels
    trouble: str = ""


def draw(record: Record, categories: Categories | None) -> Picture:
    """categories: None where the data set has no table."""
    try:
        photo = read_photo(record.photo)
    except InputError as error:
        return Picture(record, trouble=str(error))
    small = reduced(photo, SIDE)
    picture = Picture(record, photo=embed(small, SIDE))
    if not is_there(record.png):
        return picture._replace(trouble="it has no PNG of segments")
    try:
        ids = read_panoptic_png(record.png)
    except InputError as error:
        return picture._replace(trouble=str(error))
    if ids.shape != photo.shape[:2]:
        return picture._replace(trouble="its segments are not drawn: photo and PNG differ in size")
    void = float((ids == 0).mean())
    if categories is None:
        return picture._replace(void=void, trouble="its segments are not drawn: there is no table of categories")
    truth = truth_result(record, reduced(ids, SIDE, Image.Resampling.NEAREST), categories)
    return picture._replace(void=void, overlay=embed(overlay(small, truth, categories, scores=False), SIDE))


def drawer(categories: Categories | None) -> partial[Picture]:
    """`draw` with its table, for other processes."""
    return partial(draw, categories=categories)
