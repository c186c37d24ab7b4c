"""The 133 categories of COCO panoptic: 53 stuff, 80 things, with their official ids, names and colours.

coco_categories.json beside this file is the official list (https://cocodataset.org, annotations CC BY 4.0; the panoptic
task's list is that of https://github.com/cocodataset/panopticapi), in contiguous order and without supercategories.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from upsnet.categories import Categories
from upsnet.files import read_json


@cache
def coco_categories() -> Categories:
    """The table of a network trained on COCO panoptic: stuff by id (92 .. 200), then things by id (1 .. 90)."""
    return Categories.from_coco(read_json(Path(__file__).with_name("coco_categories.json")))


def coco_color(number: int, name: str) -> tuple[int, int, int] | None:
    """The official colour, where COCO has a category of this id and name."""
    known = next((each for each in coco_categories() if each.id == number), None)
    return known.color if known and known.name == name else None
