"""COCO's table, against the official list and detectron2's order of classes."""

from __future__ import annotations

import json
from pathlib import Path

from upsnet.categories import Categories
from upsnet.datasets import coco_categories


def test_it_has_53_stuff_and_80_things() -> None:
    table = coco_categories()
    assert (table.num_stuff, table.num_things, len(set(table.names))) == (53, 80, 133)
    assert (table[0].name, table[0].id) == ("banner", 92)
    assert (table[53].name, table[53].id, table[53].color) == ("person", 1, (220, 20, 60))
    assert (table[132].name, table[132].id) == ("toothbrush", 90)


def test_it_is_the_official_list(shared_data: Path) -> None:
    official = json.loads((shared_data / "panoptic_coco_categories.json").read_text())
    assert coco_categories() == Categories.from_coco(official)


def test_its_order_is_that_of_the_zoo_s_classes(shared_data: Path) -> None:
    golden = json.loads((shared_data / "panoptic_fpn_golden/categories.json").read_text())
    stuff, things = golden["stuff_coco_ids"][1:], golden["thing_coco_ids"]  # stuff label 0 is all things as one
    assert [category.id for category in coco_categories()] == [*stuff, *things]
