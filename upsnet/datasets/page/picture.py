"""One image of the page: its photo, and the truth drawn over it. Runs in worker processes."""

from __future__ import annotations

import base64
import io
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.folder import Record, truth_result
from upsnet.datasets.places import is_there
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.photos import read_photo

SIDE = 800  # no picture has a longer one
QUALITY = 80  # of its JPEG


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
    small = _reduced(photo, Image.Resampling.LANCZOS)
    picture = Picture(record, photo=_address(small))
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
    truth = truth_result(record, _reduced(ids, Image.Resampling.NEAREST), categories)
    return picture._replace(void=void, overlay=_address(overlay(small, truth, categories, scores=False)))


def drawer(categories: Categories | None) -> partial[Picture]:
    """`draw` with its table, for other processes."""
    return partial(draw, categories=categories)


def _reduced(array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """With its longer side at most SIDE."""
    height, width = array.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return array
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def _address(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
