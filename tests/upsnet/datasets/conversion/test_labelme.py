"""Labelme's JSONs -> shapes, and the four COCO photos there and back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.datasets.conversion.labelme_writer import label, png, shape, write_labelme
from tests.upsnet.datasets.conversion.truth import Truth, pixels
from upsnet.datasets.conversion.convert import ALL_THINGS, STRICT, Converted, LabelFaults, Rules, convert
from upsnet.datasets.conversion.labelme import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")


def square(label: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> dict[str, Any]:
    return shape(label, [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], **more)


def photo(path: Path, width: int = 8, height: int = 6) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path.read_bytes()


def one(folder: Path, *shapes: Any, choice: Choice = ALL_THINGS, rules: Rules = STRICT) -> Converted:
    photo(folder / "in" / "a.jpg")
    label(folder / "in" / "a.json", *shapes)
    (made,) = convert(read(folder / "in"), folder / "out", choice, rules, progress=False)
    return made


def ids(made: Converted) -> list[list[int]]:
    data = PanopticFolder(made.split)
    return data.read(data.records[0])[1].tolist()  # type: ignore[no-any-return]


def test_the_later_shape_is_on_top(tmp_path: Path) -> None:
    made = one(tmp_path, square("cat", 0, 0, 2, 1), square("dog", 1, 0, 4, 1, shape_type=None))
    assert ids(made)[0] == [1, 2, 2, 2, 0, 0, 0, 0]
    assert [(each.id, each.name) for each in made.table.categories] == [(1, "cat"), (2, "dog")]


def test_a_group_is_one_object_and_its_box_does_not_count(tmp_path: Path) -> None:
    box = shape("cat", [[0, 0], [8, 6]], "rectangle", group_id=7)
    parts = [square("cat", 0, 0, 1, 1, group_id=7), square("cat", 4, 0, 5, 1, group_id=7)]
    made = one(tmp_path, box, *parts, square("dog", 6, 0, 7, 1, group_id=7), square("cat", 7, 0, 8, 1))
    assert ids(made)[0] == [1, 0, 0, 0, 1, 0, 2, 3]
    assert made.left_out == {"box of a group with an outline": 1}


def test_circles_masks_points_and_lines(tmp_path: Path) -> None:
    mask = np.array([[1, 0], [1, 1]])
    drawn = [
        shape("ball", [[2, 2], [2, 0.4]], "circle"),
        shape("cat", [[6, 3], [7, 4]], "mask", mask=png(mask)),
        shape("cat", [[1, 1]], "point"),
        shape("dog", [[1, 1], [2, 2]], "line"),
        shape("dog", [[1, 1], [2, 2], [3, 3]], "linestrip"),
    ]
    made = one(tmp_path, *drawn)
    expected = np.zeros((6, 8), int)
    expected[0:4, 1:3] = expected[1:3, 0:4] = 1
    expected[3, 6] = expected[4, 6:8] = 2
    assert (np.array(ids(made)) == expected).all()
    assert made.left_out == {"point": 1, "line": 1, "linestrip": 1}
    assert "dog" in [each.name for each in made.table.categories]


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("rectangle", [[4, 3], [1, 1]]),
        ("rectangle", [[1, 1], [4, 1], [4, 3], [1, 3]]),  # X-AnyLabeling's
        ("oriented_rectangle", [[1, 1], [4, 1], [4, 3], [1, 3]]),
        ("rotation", [[1, 1], [4, 1], [4, 3], [1, 3]]),
    ],
)
def test_boxes(tmp_path: Path, kind: str, points: list[Any]) -> None:
    with pytest.raises(LabelFaults, match=r"a.jpg: a.json: shapes\[0\] \(cat\): a box, which has no outline"):
        one(tmp_path, shape("cat", points, kind))
    made = one(tmp_path, shape("cat", points, kind), rules=Rules(boxes="fill"))
    assert np.argwhere(np.array(ids(made)) == 1).tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]


def test_flags_say_what_a_crowd_is(tmp_path: Path) -> None:
    made = one(tmp_path, square("cat", 0, 0, 2, 1, flags={"crowd": True}), square("cat", 4, 0, 5, 1))
    assert made.counts["cat"].crowds == 1


def test_what_labelme_ignores_is_void_unless_it_is_asked_for(tmp_path: Path) -> None:
    drawn = [square("cat", 0, 0, 3, 1), square("__ignore__", 0, 0, 1, 1), square("_background_", 1, 0, 2, 1)]
    made = one(tmp_path, *drawn)
    assert ids(made)[0] == [0, 0, 1, 0, 0, 0, 0, 0]
    made = one(tmp_path, *drawn, choice=Choice(stuff=["_background_"]), rules=Rules(replace=True))
    assert ids(made)[0] == [0, 2, 1, 0, 0, 0, 0, 0]


def test_labels_txt_gives_the_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "labels.txt").write_text("__ignore__\n_background_\nzebra\ncow\n")
    made = one(tmp_path, square("cow", 0, 0, 3, 1), square("ant", 4, 0, 5, 1))
    assert [(each.id, each.name) for each in made.table.categories] == [(1, "zebra"), (2, "cow"), (3, "ant")]


def test_another_folders_photo_of_the_same_name(tmp_path: Path) -> None:
    photo(tmp_path / "x" / "a.jpg")
    label(tmp_path / "y" / "a.json", imagePath="a.jpg")
    (fault,) = read(tmp_path).faults
    assert fault.startswith("y/a.json: its photo 'y/a.jpg' is not in")
    assert "; 'x/a.jpg' is there, in another folder; give the folder" in fault


def test_where_the_photo_is(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("images/a.jpg", "images/b.jpg", "c/c.png", "other/d.jpg", "images/free.jpg"):
        photo(folder / name)
    label(folder / "labels" / "a.json", square("cat", 0, 0, 1, 1), imagePath="..\\images\\a.jpg")
    label(folder / "labels" / "b.json", imagePath="C:\\Users\\me\\b.jpg")
    label(folder / "c" / "c.json", imagePath="before.jpg")
    label(folder / "d.json", imagePath="../../other/d.jpg")
    source = read(folder)
    assert not source.faults
    assert [item.name for item in source.splits["all"]] == ["other/d.jpg", "c/c.png", "images/a.jpg", "images/b.jpg"]
    assert source.remarks == [
        "1 JSONs name a photo that is not there; taken is the one with the JSON's own name, as c/c.json",
        "2 photos lie in other folders than the labels say, as other/d.jpg for '../../other/d.jpg'",
        "1 photos have no JSON and are left out (--unlabelled: they show no object), as images/free.jpg",
    ]
    assert read(folder, unlabelled=True).splits["all"][-1].name == "images/free.jpg"
    (made,) = convert(read(folder, unlabelled=True), tmp_path / "out", progress=False)
    assert made.checkup.tally.images == 5 and not made.checkup.tally.errors


def test_a_json_that_names_itself(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    label(tmp_path / "a.json", square("cat", 0, 0, 1, 1), imagePath="a.json")
    assert [item.name for item in read(tmp_path).splits["all"]] == ["a.jpg"]


def test_flags_of_photos_alone(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    label(tmp_path / "a.json", flags={"cat": True})
    with pytest.raises(InputError, match="the labels hold no shape, and so no class"):
        convert(read(tmp_path), tmp_path / "out", progress=False)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(LabelFaults, match=r"a fault, nothing is written: .* its photo 'a\.jpg' is not in"):
        convert(read(tmp_path), tmp_path / "out", progress=False)


def test_folders_that_are_named_as_splits(tmp_path: Path) -> None:
    for name in ("train/a", "val/a", "val/b/c"):
        photo(tmp_path / "in" / f"{name}.jpg")
        label(tmp_path / "in" / f"{name}.json", square("cat", 0, 0, 1, 1))
    photo(tmp_path / "in" / "val" / "free.jpg")
    source = read(tmp_path / "in", unlabelled=True)
    names = {split: [item.name for item in items] for split, items in source.splits.items()}
    assert names == {"train": ["a.jpg"], "val": ["a.jpg", "b/c.jpg", "free.jpg"]}
    photo(tmp_path / "in" / "more" / "free.jpg")
    with pytest.raises(InputError, match=r"free\.jpg: has no JSON and lies in none of the folders train, val"):
        read(tmp_path / "in", unlabelled=True)
    label(tmp_path / "in" / "more" / "free.json")
    assert list(read(tmp_path / "in").splits) == ["all"]


def test_names_that_are_nearly_one(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    label(tmp_path / "a.json", *(square(name, 0, 0, 1, 1) for name in ("cat", "Cat ", "dog")))
    assert read(tmp_path).remarks == ["classes whose names differ in blanks or capitals alone: 'Cat ', 'cat'"]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "..\\..\\secret.jpg", "", "x\ny.jpg", None])
def test_a_photo_that_is_not_below_the_folder(tmp_path: Path, name: str | None) -> None:
    photo(tmp_path / "secret.jpg")
    label(tmp_path / "in" / "a.json", imagePath=name)
    source = read(tmp_path / "in")
    assert not source.splits["all"]
    (fault,) = source.faults
    assert fault.startswith("a.json: its photo") and "--photos" in fault


def test_a_fault_names_the_photo_and_the_cure(tmp_path: Path) -> None:
    label(tmp_path / "a.json", square("cat", 0, 0, 1, 1))
    (fault,) = read(tmp_path).faults
    assert fault == f"a.json: its photo 'a.jpg' is not in {tmp_path}; give the folder of the photos as --photos"
    with pytest.raises(LabelFaults, match="a fault, nothing is written"):
        convert(read(tmp_path), tmp_path / "out", rules=Rules(partial=True), progress=False)


def test_the_photo_inside_the_json(tmp_path: Path) -> None:
    content = base64.b64encode(photo(tmp_path / "b.png")).decode()
    label(tmp_path / "in" / "a.json", square("cat", 0, 0, 1, 1), imageData=content)
    label(tmp_path / "in" / "b.json", square("cat", 0, 0, 1, 1), imageData=content[:60])
    source = read(tmp_path / "in")
    assert source.remarks == ["2 photos are not there and taken from the JSON (imageData), as a.json"]
    with pytest.raises(LabelFaults, match=r"a fault, .* b.png: .*b.json: 'imageData': not a readable image"):
        convert(source, tmp_path / "out", progress=False)
    (made,) = convert(source, tmp_path / "out", rules=Rules(partial=True), progress=False)
    assert (made.checkup.tally.images, made.copied, made.checkup.tally.errors) == (1, 1, 0)
    assert [each.name for each in made.split.images.iterdir()] == ["a.png"]


def test_two_jsons_of_one_photo(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.jpg")
    label(tmp_path / "in" / "a.json")
    label(tmp_path / "in" / "b.json", imagePath="a.jpg")
    assert [fault.partition(":")[0] for fault in read(tmp_path / "in").faults] == ["a.json", "b.json"]


def test_other_jsons_are_passed_over_and_broken_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    photo(folder / "a.jpg")
    label(folder / "a.json").write_bytes(label(folder / "a.json").read_text().encode("utf-16"))
    (folder / "coco.json").write_text('{"images": [], "annotations": []}')
    (folder / "cut.json").write_text('{"shapes": [')
    (folder / "empty.json").write_text("")
    (folder / "object.json").write_text('{"shapes": {}, "imagePath": "a.jpg"}')
    source = read(folder)
    assert [item.name for item in source.splits["all"]] == ["a.jpg"]
    assert source.remarks == ["1 JSONs are none of Labelme's and passed over, as coco.json"]
    assert [fault.split(":")[0].rpartition("/")[2] for fault in source.faults] == [
        "cut.json",
        "empty.json",
        "object.json",
    ]
    (folder / "a.json").unlink()
    for name in ("cut", "empty", "object"):
        (folder / f"{name}.json").unlink()
    with pytest.raises(InputError, match=r"no Labelme JSON, .* coco.json: has neither 'shapes' nor 'imagePath'"):
        read(folder)
    with pytest.raises(InputError, match=r"coco.json: a file; give the folder with Labelme's JSONs"):
        read(folder / "coco.json")


@pytest.mark.parametrize(
    ("drawn", "fault"),
    [
        ("cat", r"shapes\[0\] is 'cat', not an object"),
        (shape("cat", [[0, 0], ["1", 2], [3, 3]]), r"shapes\[0\]: points\[1\] is \['1', 2\], not \[x, y\]"),
        (shape("cat", [[0, 0], [float("nan"), 2]]), r"points\[1\]"),
        (shape("cat", [[0, 0], [10**400, 2], [1, 1]]), r"points\[1\] is"),
        (shape("cat", [[0, 0], [900, 2], [1, 1]]), r"the point \(900, 2\) is far outside"),
        (shape("cat", [[0, 0], [1e10, 2]], "circle"), "far outside"),
        (shape("cat", [], "rectangle"), "a rectangle with 0 points; it has 2 or 4"),
        (shape("cat", [[0, 0], [1, 1]], "star"), "'shape_type' is 'star', which is not known here"),
        (shape("cat", [[0, 0], [1, 1]], "mask"), "'mask' is None, not a text in base64"),
        (shape("cat", [[0, 0], [1, 1]], "mask", mask="%%"), "'mask' is not base64"),
        (shape("cat", [[0, 0], [1, 1]], "mask", mask="QUJD"), "'mask': not a readable image"),
        (shape("cat", [[0, 0], [1, 1]], "mask", mask=png(np.ones((5, 5)))), "mask has 5 x 5 pixels, its points span 2"),
        (shape("cat", [[0, 0], [1, 1]], "mask", mask=png(np.ones((900, 1)))), "1 x 900 pixels, the photo has 8 x 6"),
        (shape("cat", [[0, 0], [1, 1]], group_id=[1]), r"'group_id' is \[1\], not an integer or null"),
        (shape(7, [[0, 0], [1, 1]]), "'label' is 7, not the name of a class"),  # type: ignore[arg-type]
    ],
)
def test_shapes_that_cannot_be_read(tmp_path: Path, drawn: Any, fault: str) -> None:
    with pytest.raises(LabelFaults, match=rf"a.jpg: a.json: {fault}" if fault[0] == "s" else fault):
        one(tmp_path, drawn, square("dog", 0, 0, 1, 1))
    assert not (tmp_path / "out").exists()


def test_the_coco_photos_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    truth = Truth(shared_data)
    write_labelme(truth.data, tmp_path / "in")
    kinds = {
        each["shape_type"]
        for path in (tmp_path / "in").glob("*.json")
        for each in json.loads(path.read_text())["shapes"]
    }
    assert kinds == {"polygon", "mask"}
    (made,) = convert(read(tmp_path / "in"), tmp_path / "out", Choice(table=truth.json_file), progress=False)
    assert not made.checkup.tally.errors and made.contested == 0 and not made.lost
    assert pixels(PanopticFolder(made.split)) == pixels(truth.data)
