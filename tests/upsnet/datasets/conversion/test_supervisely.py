"""A Supervisely project -> shapes, and the four COCO photos there and back."""

from __future__ import annotations

import base64
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.datasets.conversion.supervisely_writer import (
    annotate,
    bitmap,
    drawn,
    meta,
    polygon,
    write_supervisely,
)
from tests.upsnet.datasets.conversion.truth import Truth, check_comes_back
from upsnet.datasets.conversion.convert import ALL_THINGS, STRICT, Converted, LabelFaults, Rules, convert
from upsnet.datasets.conversion.supervisely import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

TITLES = {"cat": "#0A0B0C", "dog": "#FF0000"}


def add(dataset: Path, name: str, *objects: Any) -> Path:
    """A photo of 8 x 6 pixels with its JSON."""
    target = annotate(dataset, name, *objects)
    Image.new("RGB", (8, 6)).save(dataset / "img" / name)
    return target


def one(folder: Path, *objects: Any, choice: Choice = ALL_THINGS, rules: Rules = STRICT) -> Converted:
    add(meta(folder / "in", TITLES) / "ds", "a.png", *objects)
    (made,) = convert(read(folder / "in"), folder / "out", choice, rules, progress=False)
    return made


def ids(made: Converted) -> np.ndarray:
    data = PanopticFolder(made.split)
    return data.read(data.records[0])[1]


def expected(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """6 x 8, with (number, first column, first row, last column, last row) painted in this order."""
    canvas = np.zeros((6, 8), int)
    for number, x1, y1, x2, y2 in boxes:
        canvas[y1 : y2 + 1, x1 : x2 + 1] = number
    return canvas


def test_an_outline_through_pixels_holds_them_and_the_later_object_is_on_top(tmp_path: Path) -> None:
    made = one(
        tmp_path,
        polygon("cat", [[0, 0], [4, 0], [4, 4], [0, 4]], [[2, 2], [3, 2], [3, 3], [2, 3]]),
        polygon("dog", [[4, 4], [8, 4], [8, 6], [4, 6]]),  # 8 and 6 are the sides: the last pixels
    )
    assert (ids(made) == expected((1, 0, 0, 4, 4), (0, 2, 2, 3, 3), (2, 4, 4, 7, 5))).all()
    assert [(each.id, each.name, each.color) for each in made.table.categories] == [
        (1, "cat", (10, 11, 12)),
        (2, "dog", (255, 0, 0)),
    ]


def test_fractions_are_the_editors_coordinates(tmp_path: Path) -> None:
    made = one(tmp_path, polygon("cat", [[0.4, 0.4], [4.4, 0.4], [4.4, 3.4], [0.4, 3.4]]))
    assert (ids(made) == expected((1, 0, 0, 3, 2))).all()


def test_small_polygons(tmp_path: Path) -> None:
    made = one(tmp_path, polygon("cat", [[5, 5]]), polygon("dog", [[1, 1], [3, 1]]), polygon("dog", []))
    assert (ids(made) == expected((1, 5, 5, 5, 5), (2, 1, 1, 3, 1))).all()
    assert made.lost == ["a.png: a.png.json: objects[2] (dog): holds no pixel"]


@pytest.mark.parametrize("kind", ["bitmap", "alpha_mask"])
def test_bitmaps(tmp_path: Path, kind: str) -> None:
    mask = np.array([[1, 1], [0, 1]])
    made = one(tmp_path, bitmap("cat", mask, 7, 2, kind), bitmap("dog", mask, 2, 3, kind))
    assert (ids(made) == expected((1, 7, 2, 7, 2), (2, 2, 3, 3, 3), (2, 3, 4, 3, 4))).all()


def test_a_bitmap_that_is_not_packed(tmp_path: Path) -> None:
    entry = bitmap("cat", np.ones((2, 2)), 1, 1)
    plain = zlib.decompress(base64.b64decode(entry["bitmap"]["data"]))
    entry["bitmap"]["data"] = base64.b64encode(plain).decode()
    assert (ids(one(tmp_path, entry)) == expected((1, 1, 1, 2, 2))).all()


def test_objects_of_several_parts(tmp_path: Path) -> None:
    parts = [{"exterior": [[x, 0], [x + 1, 0], [x + 1, 1], [x, 1]]} for x in (0, 6)]
    bound = [polygon("dog", [[x, 4], [x, 5]], instance="b3f") for x in (0, 7)]
    made = one(tmp_path, drawn("cat", "multipolygon", parts=parts), *bound, polygon("cat", [[3, 4]], instance="b3f"))
    boxes = [(1, 0, 0, 1, 1), (1, 6, 0, 7, 1), (2, 0, 4, 0, 5), (2, 7, 4, 7, 5), (3, 3, 4, 3, 4)]
    assert (ids(made) == expected(*boxes)).all()


def test_boxes(tmp_path: Path) -> None:
    rectangle = drawn("cat", "rectangle", points={"exterior": [[4, 3], [1, 1]], "interior": []})
    with pytest.raises(LabelFaults, match=r"a.png: a.png.json: objects\[0\] \(cat\): a box, which has no outline"):
        one(tmp_path, rectangle)
    turned = drawn("dog", "oriented_bbox", points=[[5, 1], [6, 4]], angle=math.pi / 2)
    made = one(tmp_path, rectangle, turned, rules=Rules(boxes="fill"))
    assert (ids(made) == expected((1, 1, 1, 4, 3), (2, 4, 2, 7, 3))).all()


def test_crowds_and_what_holds_no_pixel(tmp_path: Path) -> None:
    crowd = bitmap("cat", np.ones((2, 2)), 1, 1, tags=[{"name": "iscrowd", "value": None}])
    line = drawn("dog", "line", points={"exterior": [[0, 0], [3, 3]], "interior": []})
    made = one(tmp_path, crowd, line, drawn("dog", "point", points={"exterior": [[0, 0]], "interior": []}))
    assert made.counts["cat"].crowds == 1 and made.left_out == {"line": 1, "point": 1}


def test_datasets_are_splits_unless_merged(tmp_path: Path) -> None:
    project = meta(tmp_path / "in", TITLES)
    for dataset in ("train", "val", "val/datasets/night"):
        add(project / dataset, "a.png", bitmap("cat", np.ones((2, 2)), 1, 1))
    Image.new("RGB", (8, 6)).save(project / "val" / "img" / "free.png")
    source = read(project)
    assert list(source.splits) == ["train", "val", "val_night"]
    about = "photos have no JSON and are left out (--unlabelled: they show no object), as val/img/free.png"
    assert source.remarks == [f"1 {about}"]
    assert len(convert(source, tmp_path / "out", progress=False)) == 3
    source = read(project, merge=True, unlabelled=True)
    names = ["train/a.png", "val/a.png", "val/free.png", "val_night/a.png"]
    assert [item.name for item in source.splits["all"]] == names
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert made.checkup.tally.images == 4 and not made.checkup.tally.errors
    add(meta(tmp_path / "odd", TITLES) / "panoptic_x", "a.png")
    with pytest.raises(InputError, match="a split cannot be named 'panoptic_x'"):
        convert(read(tmp_path / "odd"), tmp_path / "other", progress=False)


def test_photos_and_jsons_that_do_not_fit(tmp_path: Path) -> None:
    dataset = meta(tmp_path / "in", TITLES) / "ds"
    add(dataset, "a.png").rename(dataset / "ann" / "a.json")  # as early projects have it
    annotate(dataset, "b.png")
    source = read(tmp_path / "in")
    assert [item.name for item in source.splits["ds"]] == ["a.png"]
    (fault,) = source.faults
    assert fault.endswith("ds/img/b.png: is not there; export with the images")
    add(dataset, "a.png")
    assert read(tmp_path / "in").faults[0].endswith("another JSON is of the same photo")


def test_folders_that_are_no_project(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no meta.json, which a Supervisely project has"):
        read(tmp_path)
    meta(tmp_path, TITLES)
    with pytest.raises(InputError, match="no dataset, a folder that holds ann and img"):
        read(tmp_path)
    meta(tmp_path, {"cat": "red"})
    with pytest.raises(InputError, match=r"meta.json: classes\[0\]: 'color' is 'red', not #RRGGBB"):
        read(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta.json: no list 'classes'"):
        read(tmp_path)


def test_classes_of_one_colour_get_their_own(tmp_path: Path) -> None:
    add(meta(tmp_path / "in", {"cat": "#0A0B0C", "dog": "#0A0B0C"}) / "ds", "a.png")
    (made,) = convert(read(tmp_path / "in"), tmp_path / "out", progress=False)
    assert len({each.color for each in made.table.categories}) == 2


BOMB = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (bitmap("cow", np.ones((2, 2)), 0, 0), r"objects\[0\]: meta.json has no class 'cow'; there are cat, dog"),
        (bitmap("cat", np.ones((1, 99)), 0, 0), "the bitmap's data: 99 x 1 pixels, the photo has 8 x 6"),
        (bitmap("cat", np.ones((2, 2)), 10**9, 0), "far outside"),
        (drawn("cat", "bitmap", bitmap={"origin": [0, 0], "data": BOMB}), "unpacks to over 65776 bytes, more than a"),
        (drawn("cat", "bitmap", bitmap={"origin": [0, 0], "data": "QUJD"}), "cannot be unpacked"),
        (drawn("cat", "bitmap", bitmap={"origin": [0, 0], "data": BOMB[:40]}), "ends before its end"),
        (drawn("cat", "bitmap", bitmap={"origin": None, "data": BOMB[:40]}), "ends before its end"),
        (drawn("cat", "bitmap", bitmap=None), "'bitmap' is None"),
        (drawn("cat", "polygon", points=[[0, 0]]), "not an object with exterior and interior"),
        (polygon("cat", [[0, 0], [1]]), r"points\[1\] is \[1\], not \[x, y\]"),
        (polygon("cat", [[0, 0], [1, 1], [10**7, 3]]), "far outside"),
        (drawn("cat", "multipolygon"), "'parts' is None"),
        (drawn("cat", "oriented_bbox", points=[[0, 0], [1, 1]], angle="1"), "'angle' is '1'"),
        (drawn("cat", "rectangle", points={"exterior": [[0, 0]]}), "a rectangle with 1 points"),
        (drawn("cat", "cube"), "'geometryType' is 'cube', which is not known here; there are bitmap"),
        (drawn(None, "bitmap"), "'classTitle' is None"),  # type: ignore[arg-type]
        (5, r"objects\[0\] is 5, not an object"),
    ],
)
def test_objects_that_cannot_be_read(tmp_path: Path, entry: Any, fault: str) -> None:
    with pytest.raises(LabelFaults, match=f"a.png: a.png.json: .*{fault}"):
        one(tmp_path, entry)
    assert not (tmp_path / "out").exists()


def test_the_coco_photos_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    truth = Truth(shared_data)
    write_supervisely(truth.data, tmp_path / "in")
    check_comes_back(read(tmp_path / "in"), truth, tmp_path / "out")
