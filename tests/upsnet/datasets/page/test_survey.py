"""Which images a page shows, and which findings stand beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hand_made_dataset import CATEGORIES
from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.findings import Finding, Tally, image_of
from upsnet.datasets.page.survey import Survey, findings_by_image
from upsnet.datasets.split import Split
from upsnet.files import write_json
from upsnet.photos import write_png

Change = dict[int, dict[str, Any]]


def survey(folder: Path, images: dict[int, list[int]], changes: Change | None = None) -> Survey:
    """images: id -> the category of each of its segments, a column of four pixels for each."""
    entries: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, held in images.items():
        name = f"{number}.png"
        ids = np.tile(np.arange(len(held) + 1, dtype=np.int32), (4, 1))
        write_png(folder / "images" / name, np.zeros((*ids.shape, 3), np.uint8))
        write_png(folder / "segments" / name, id2rgb(ids))
        infos = [
            {"id": place, "category_id": id, "area": 4, "bbox": [place, 0, 1, 4], "iscrowd": 0}
            | (changes or {}).get(number, {})
            for place, id in enumerate(held, 1)
        ]
        entries["images"].append({"id": number, "file_name": name, "height": 4, "width": len(held) + 1})
        entries["annotations"].append({"image_id": number, "file_name": name, "segments_info": infos})
    write_json(folder / "set.json", entries)
    split = Split(json_file=folder / "set.json", segments=folder / "segments", images=folder / "images")
    return Survey(check_split(split, 1, progress=False))


def test_the_worst_come_first(tmp_path: Path) -> None:
    changes: Change = {3: {"bbox": None}, 4: {"area": 5}, 5: {"area": 5, "bbox": None}}
    made = survey(tmp_path, {number: [3, 5] for number in range(1, 8)}, changes)
    assert made.choose(3, 0, False, None) == [5, 4, 3]
    assert set(made.choose(7, 0, False, None)[3:]) == {1, 2, 6, 7}
    assert made.choose(7, 0, True, None) == [5, 4, 3]
    assert [each.kind for each in made.findings[5]] == ["area", "area", "bbox-missing", "bbox-missing"]


def test_the_lot_shows_every_class_and_does_not_depend_on_the_order(tmp_path: Path) -> None:
    images = {number: [3] for number in range(1, 40)} | {40: [3, 9], 41: [5], 42: [3, 5, 70]}
    made = survey(tmp_path / "a", images)
    chosen = made.choose(6, 0, False, None)
    assert {40, 42} <= set(chosen[:2]) and len(set(chosen)) == 6
    backwards = survey(tmp_path / "b", dict(reversed(images.items())))
    assert backwards.choose(6, 0, False, None) == chosen
    assert made.choose(6, 1, False, None) != chosen
    assert sorted(made.choose(99, 0, False, None)) == sorted(images)
    assert sorted(made.choose(99, 0, False, {9, 70})) == [40, 42]


def test_records_come_as_chosen_without_what_cannot_be_drawn(tmp_path: Path) -> None:
    made = survey(tmp_path, {1: [3, 5], 2: [3, 777], -3: [9]})
    assert [(each.image_id, [segment.category_id for segment in each.segments]) for each in made.records([2, -3])] == [
        (2, [3]),
        (-3, [9]),
    ]


def test_crowds_are_no_sizes(tmp_path: Path) -> None:
    made = survey(tmp_path, {1: [3, 3], 2: [3]}, {2: {"iscrowd": 1}})
    assert list(made.areas[3]) == [4, 4] and not made.areas[9]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("image 42: no segments", 42),
        ("image -7 (a.png) has no annotation", -7),
        ("images[2]: image 5: no", None),
        ("/photos/image 3.jpg", None),
        ("category 3 'image 3': no colour", None),
    ],
)
def test_the_image_of_a_finding(text: str, number: int | None) -> None:
    assert image_of(text) == number


def test_findings_are_gathered_by_image_in_the_order_of_their_kinds() -> None:
    tally = Tally()
    for kind, text in (("bbox", "image 1: b"), ("color", "category 3: c"), ("area", "image 1: a")):
        tally.note(kind, text)
    assert findings_by_image(tally) == {1: [Finding("area", "image 1: a"), Finding("bbox", "image 1: b")]}
