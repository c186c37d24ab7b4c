from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from upsnet.categories import Categories, Category
from upsnet.errors import InputError

PERSON = {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60], "supercategory": "person"}
CAR = {"id": 3, "name": "car", "isthing": 1, "color": [0, 0, 142]}
SKY = {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]}
ROAD = {"id": 2, "name": "road", "isthing": 0, "color": [128, 64, 128]}


def test_contiguous_order_is_stuff_then_things_by_id() -> None:
    table = Categories.from_coco([CAR, SKY, PERSON, ROAD])
    assert table.names == ["road", "sky", "person", "car"]
    assert (len(table), table.num_stuff, table.num_things) == (4, 2, 2)
    assert [table.index_of_id(category.id) for category in table] == [0, 1, 2, 3]
    assert table[1] == Category(id=187, name="sky", isthing=False, color=(70, 130, 180))
    with pytest.raises(InputError, match="99"):
        table.index_of_id(99)


@given(st.permutations([PERSON, CAR, SKY, ROAD]))
def test_order_of_the_input_does_not_matter_and_coco_round_trips(entries: list[dict[str, Any]]) -> None:
    table = Categories.from_coco(entries)
    assert table == Categories.from_coco([PERSON, CAR, SKY, ROAD])
    assert hash(table) == hash(Categories.from_coco(table.to_coco()))
    assert Categories.from_coco(table.to_coco()) == table


def test_colours_are_made_deterministically_and_differ() -> None:
    entries = [{"id": id, "name": str(id), "isthing": id % 2} for id in range(1, 31)]
    table = Categories.from_coco(entries)
    assert table == Categories.from_coco(reversed(entries))
    assert len({category.color for category in table}) == 30


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "empty"),
        ([PERSON, {**CAR, "id": 1}], "id 1 occurs more than once"),
        ([{"id": 1, "name": "x"}], r"categories\[0\]: key 'isthing' is missing"),
        ([PERSON, {**CAR, "id": "three"}], r"categories\[1\]: 'id' is 'three'"),
        ([{"id": None, "name": "x", "isthing": 1}], r"categories\[0\]: 'id' is None"),
        ([{**CAR, "isthing": 2}], r"categories\[0\]: 'isthing' is 2, not 0 or 1"),
        ([{**CAR, "color": [0, 0, 256]}], r"categories\[0\]: color.2"),
        ([{**CAR, "color": [0, 0]}], r"categories\[0\]: color"),
        ([7], r"categories\[0\]: expected an object"),
    ],
)
def test_bad_entries_are_named(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Categories.from_coco(entries)
    assert "\n" not in str(caught.value)


def test_category_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Categories.from_coco([SKY])[0].name = "ground"  # type: ignore[misc]


def test_official_coco_table(shared_data: Path) -> None:
    table = Categories.from_coco(json.loads((shared_data / "panoptic_coco_categories.json").read_text()))
    assert (table.num_stuff, table.num_things) == (53, 80)
    assert table[0].name == "banner" and table[52].name == "rug-merged"
    assert table[53].name == "person" and table[132].name == "toothbrush"
