"""YOLO's text files: what a row is, where photos and labels are found, what is a fault; the truth of COCO's photos."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.datasets.conversion.truth import Truth, pixels
from tests.upsnet.datasets.conversion.yolo_writer import bridged, row, write_yolo
from upsnet.datasets.conversion.convert import LabelFaults, Rules, convert
from upsnet.datasets.conversion.labels import Labels, Source
from upsnet.datasets.conversion.regions import rasterise
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.conversion.yolo import label_of, read
from upsnet.datasets.conversion.yolo_rows import Rows, read_rows
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")
pytest.importorskip("yaml", reason="data.yaml needs pyyaml")

SIZE = (20, 40)  # height, width
ROWS = Rows({0, 1, 2}, "0 'cat', 1 'dog', 2 'sky'")
LEFT = "0 0 0 0.5 0 0.5 1 0 1"  # the left half
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set: data.yaml's text, and for each file its text; None: a photo."""

    def make(yaml: str, **files: str | bytes | None) -> Path:
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "data.yaml").write_text(yaml)
        return tmp_path

    return make


YAML = "train: images/train\nnames: [cat, dog]\n"
USUAL: dict[str, str | bytes | None] = {"images/train/a.jpg": None, "labels/train/a.txt": LEFT}


def names(source: Source) -> dict[str, list[str]]:
    return {split: [item.name for item in items] for split, items in source.splits.items()}


def test_cocos_truth_comes_back(shared_data: Path, tmp_path: Path) -> None:
    """Every pixel; YOLO has no crowds: the truth's become segments like others."""
    truth = Truth(shared_data).data
    source = read(write_yolo(truth, tmp_path / "yolo"))
    stuff = [each.name for each in truth.categories if not each.isthing]
    (made,) = convert(source, tmp_path / "out", Choice(stuff=stuff), Rules(workers=1), progress=False)
    assert not made.checkup.tally.errors and not made.lost and made.contested == 0
    found = PanopticFolder(made.split)
    assert pixels(found, crowds=False) == pixels(truth, crowds=False) != pixels(truth)
    assert {(each.name, each.isthing) for each in found.categories} == {(e.name, e.isthing) for e in truth.categories}


@pytest.mark.parametrize("seed", range(5))
def test_parts_and_holes_on_one_ring(tmp_path: Path, seed: int) -> None:
    mask = np.random.default_rng(seed).random(SIZE) > 0.6
    mask[5:15, 5:30] = True
    mask[8:12, 10:20] = False
    file = tmp_path / "a.txt"
    file.write_text(row(2, bridged(mask), SIZE))
    (shape,) = read_rows(SIZE, file, ROWS).shapes
    window = rasterise(shape, SIZE)
    painted = np.zeros(SIZE, bool)
    painted[window.place] = window.mask
    assert (painted == mask).all() and shape.key == 2


def rows_of(folder: Path, text: str | bytes, rows: Rows = ROWS) -> Labels:
    file = folder / "a.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_rows(SIZE, file, rows)


@pytest.mark.parametrize(
    "text",
    [
        LEFT,
        f"{LEFT}\r\n\r\n",
        LEFT.replace(" 0.5", " 5e-1").replace(" 1", " 1.0"),
        f"{LEFT}".replace("0 0 0 0.5", "0.0 -1e-3 0 0.5"),
        f"\ufeff{LEFT}\n",
        LEFT.replace(" ", "\t"),
        LEFT.encode("utf-16"),
    ],
)
def test_a_row_as_tools_write_it(tmp_path: Path, text: str | bytes) -> None:
    (shape,) = rows_of(tmp_path, text).shapes
    assert (shape.key, shape.name, shape.is_box) == (0, f"{tmp_path}/a.txt: line 1", False)
    assert rasterise(shape, SIZE).mask.sum() == 20 * 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 0 0 1 0 1 1", "line 1: data.yaml names no class 3; there are 0 'cat', 1 'dog', 2 'sky'"),
        ("-1 0 0 1 0 1 1", "names no class -1"),
        ("1.5 0 0 1 0 1 1", "names no class 1.5"),
        ("nan 0 0 1 0 1 1", "names no class nan"),
        (f"{LEFT}\n\n1 0 0 1 0 1", "line 3: 5 numbers after the class .* confidence"),
        ("0 0 0 1 1 1 0 0.9", "7 numbers after the class .* one is too many"),
        ("0 0.5", "1 numbers after the class"),
        ("0 0.5 0.5", "2 numbers after the class; a box has 4, an outline at least 6"),
        ("0", "0 numbers after the class"),
        ("0 0 0 1 0 1 inf", "not finite"),
        ("0 0 0 20 0 20 10", "the coordinate 20 is not from 0 to 1; .* divide pixels"),
        ("0 0 0 1.02 0 1 1", "the coordinate 1.02 is not"),
        ("0 0 0 1 -0.5 1 1", "the coordinate -0.5 is not"),
        ("0,0,0,1,0,1,1", "separate numbers by spaces"),
        ("cat 0 0 1 0 1 1", "'cat' is not a number"),
        ("0 0_1 0 1 0 1 1", "'0_1' is not a number"),
        ("0 0.5 0.5 -0.1 0.1", "the coordinate -0.1|negative width"),
        ("0 0.5 0.5 -0.001 0.1", "negative width"),
        (b"\xff\x80\x00abc", "not a text"),
        (b"PK\x03\x04...", "a zip archive; unpack it"),
        (b"0 0\0 0", "zero bytes"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        rows_of(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'a.txt'}: ")


def test_rows_that_are_boxes(tmp_path: Path) -> None:
    box, turned = rows_of(tmp_path, f"1 0.25 0.5 0.5 1\n{LEFT}", ROWS._replace(oriented=True)).shapes
    assert box.is_box and turned.is_box
    assert (rasterise(box, SIZE).mask == rasterise(turned, SIZE).mask).all()
    labels = rows_of(tmp_path, "1 0.25 0.5 0.5 1 0.1 0.1 2 0 0 0", ROWS._replace(keypoints=6))
    assert [shape.is_box for shape in labels.shapes] == [True]
    assert labels.left_out == [("keypoints", f"{tmp_path}/a.txt: line 1")]
    with pytest.raises(
        InputError, match=r"8 numbers after the class, not a box of 4 and, by kpt_shape of data.yaml, 6"
    ):
        rows_of(tmp_path, LEFT, ROWS._replace(keypoints=6))


def test_boxes_are_refused_unless_asked_for(make: Make, tmp_path: Path) -> None:
    root = make(YAML, **USUAL | {"labels/train/a.txt": "1 0.25 0.5 0.5 1"})
    with pytest.raises(
        LabelFaults, match=r"a.jpg: .*/labels/train/a.txt: line 1: a box, which has no outline; --boxes fill"
    ):
        convert(read(root), tmp_path / "out", progress=False)
    (made,) = convert(read(root), tmp_path / "out", rules=Rules(boxes="fill"), progress=False)
    assert made.counts["dog"].pixels == 400


@pytest.mark.parametrize(
    ("yaml", "more", "wanted"),
    [
        (YAML, {}, {"train": ["a.jpg"]}),
        ("path: .\ntrain: [images/train]\nval:\ntest: ~\nnames: {0: cat, 1: dog}\nnc: 2\n", {}, {"train": ["a.jpg"]}),
        ("train: ../images/train\nnames: [cat, dog]\n", {}, {"train": ["a.jpg"]}),  # Roboflow
        ("train: images\\train\nnames: [cat, dog]\n", {}, {"train": ["a.jpg"]}),
        ("validation: images/train\nnames: [cat, dog]\n", {}, {"val": ["a.jpg"]}),
        (
            "train: t.txt\nval: v.txt\nnames: [cat, dog]\n",
            {"t.txt": "./images/train/a.jpg\r\n\n", "v.txt": "C:\\x\\images\\train\\a.jpg\n"},
            {"train": ["images/train/a.jpg"], "val": ["images/train/a.jpg"]},
        ),
        (
            "train: images\nnames: [cat, dog]\n",
            {"images/b.png": None, "labels/b.txt": "", "labels/classes.txt": "cat\ndog\n"},
            {"train": ["b.png", "train/a.jpg"]},
        ),
        (
            "train: plain\nnames: [cat, dog]\n",
            {"plain/b.png": None, "plain/b.txt": LEFT, "plain/README.txt": "Made by somebody in 2020"},
            {"train": ["b.png"]},
        ),
    ],
)
def test_where_photos_are(
    make: Make, tmp_path: Path, yaml: str, more: dict[str, str | None], wanted: dict[str, list[str]]
) -> None:
    source = read(make(yaml, **USUAL | more))
    assert (names(source), source.faults) == (wanted, [])
    made = convert(source, tmp_path / "out", progress=False)
    assert [each.split.json_file.stem for each in made] == list(wanted)
    assert {each.counts["cat"].pixels for each in made} == {400}


def test_a_path_of_another_machine(make: Make, tmp_path: Path) -> None:
    root = make(f"path: /nowhere/data\n{YAML}", **USUAL)
    source = read(root / "data.yaml")
    assert names(source) == {"train": ["a.jpg"]}
    assert "its path '/nowhere/data' is not there; its folders were looked for in" in source.remarks[0]
    yaml = tmp_path / "elsewhere" / "x.yaml"
    yaml.parent.mkdir()
    (root / "data.yaml").rename(yaml)
    with pytest.raises(InputError, match=r"x\.yaml: train: there is no .*elsewhere/images/train; .* give --root"):
        read(yaml)
    assert names(read(yaml, root=root)) == {"train": ["a.jpg"]}
    assert names(read(yaml.parent, root=root)) == {"train": ["a.jpg"]}  # the only YAML there


@pytest.mark.parametrize(
    ("place", "cure"),
    [
        ("/content/set/images/train", "write images/train in its place"),
        ("C:\\\\set\\\\images\\\\train", "write images/train in its place"),
        ("/content/other", "write a folder below .* in its place"),
    ],
)
def test_a_folder_of_another_machine(make: Make, place: str, cure: str) -> None:
    with pytest.raises(InputError, match=f"train: there is no .*; it is another machine's: {cure}"):
        read(make(f"train: {place}\nnames: [cat]\n".replace("\\\\", "\\"), **USUAL))


def test_a_photo_that_is_a_dangling_link_is_one_fault(make: Make, tmp_path: Path) -> None:
    root = make(YAML, **USUAL | {"labels/train/b.txt": LEFT})
    (root / "images/train/b.jpg").symlink_to("gone.jpg")
    source = read(root)
    assert not source.faults
    with pytest.raises(LabelFaults, match=r"a fault, .*b\.jpg: .*no such file"):
        convert(source, tmp_path / "out", progress=False)


def test_label_studios_folder(make: Make) -> None:
    root = make("", **{"images/a.jpg": None, "labels/a.txt": LEFT, "classes.txt": "cat\nno\n"})
    (root / "data.yaml").unlink()
    source = read(root)
    assert names(source) == {"all": ["a.jpg"]}
    assert [(each.key, each.name) for each in source.classes] == [(0, "cat"), (1, "no")]


def test_names_stay_as_they_are_written(make: Make) -> None:
    source = read(make("train: images/train\nnames:\n  0: no\n  1: 007\n  5: ' café '\n", **USUAL))
    assert [(each.id, each.name) for each in source.classes] == [(0, "no"), (1, "007"), (5, " café ")]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\n", "has no key `names`"),
        ("- a\n", "has no key `names`"),
        ("", "has no key `names`"),
        ("names: [cat, dog]\n", "names no photos; give `train` and `val`"),
        (f"{YAML}nc: 3\n", "nc is 3, but names has 2 classes"),
        (f"{YAML}nc: x\n", "nc: 'x' is not a whole number"),
        ("train: images/train\nnames: {0: cat, 0: dog}\n", "the key '0' stands twice, the second time in line 2"),
        ("train: images/train\nnames: {a: cat}\n", "names: 'a' is not a whole number"),
        ("train: images/train\nnames: [cat, [dog]]\n", "names: class 1 has no name"),
        ("train: images/train\nnames: [cat, '']\n", "names: class 1 has no name"),
        ("train: images/train\nnames: coco.names\n", "names: give a list of the classes"),
        ("train: images/train\nnames: []\n", "names: lists no class"),
        ("train: {a: b}\nnames: [cat]\n", "train: give a folder of photos"),
        ("train: images/test\nnames: [cat]\n", "train: there is no .*/images/test"),
        ("train: data.yaml\nnames: [cat]\n", "is neither a folder nor a .txt"),
        ("train: empty\nnames: [cat]\n", "train: no photo in empty"),
        ("train: bare\nnames: [cat]\n", "none of its 1 photos has a label file, which would be .*bare/b.txt"),
        (f"{YAML}val: images/train\nvalidation: images/train\n", "has both `val` and `validation`"),
        (f"{YAML}kpt_shape: 3\n", r"kpt_shape: give two numbers, as \[17, 3\]"),
        (f"{YAML}path: [a]\n", "path: give one folder"),
        ("names: [cat\n", r"not valid YAML: .* \(line 2\)"),
        ("[" * 600, "not valid YAML"),
    ],
)
def test_a_wrong_data_yaml_is_named(make: Make, yaml: str, message: str) -> None:
    root = make(yaml, **USUAL | {"bare/b.jpg": None})
    (root / "empty").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        read(root)
    assert str(raised.value).startswith(str(root / "data.yaml"))


def test_a_folder_without_data_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data.yaml there"):
        read(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(YAML)
    with pytest.raises(InputError, match=r"has 2 YAML files, none is data.yaml; give a.yaml"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "x")


def test_nothing_is_lost_in_silence(make: Make, tmp_path: Path) -> None:
    files = {"images/train/b.jpg": None, "labels/train/c.txt": LEFT, "labels/train/deep/d.txt": LEFT, "t.txt": "x.jpg"}
    root = make("train: [images/train, images/train]\nval: images/train\nnames: [cat, dog]\n", **USUAL | files)
    source = read(root)
    assert [fault.partition(": ")[0] for fault in source.faults] == [
        str(root / "labels/train/c.txt"),
        str(root / "labels/train/deep/d.txt"),
    ]
    said = "\n".join(source.remarks)
    assert "train: 2 photos were listed again" in said
    assert "1 of 2 photos have no label file, which means no objects in YOLO, as" in said
    assert "2 photos are in train and in val" in said
    assert "all rows of the first 2 label files have four points" in said
    with pytest.raises(LabelFaults, match=r"c.txt: labels to which no photo belongs"):
        convert(source, tmp_path / "out", progress=False)
    (root / "data.yaml").write_text("train: t.txt\nnames: [cat]\n")
    with pytest.raises(InputError, match=r"no photo in t.txt"):
        read(root)


@pytest.mark.parametrize(
    ("place", "why"),
    [("gone", "there is no"), ("empty", "no photo in empty"), ("bare", "none of its 1 photos has a label")],
)
def test_a_test_split_without_photos_or_labels(make: Make, place: str, why: str) -> None:
    root = make(f"{YAML}test: {place}\n", **USUAL | {"bare/b.jpg": None})
    (root / "empty").mkdir()
    source = read(root)
    assert list(source.splits) == ["train"]
    assert any(remark.startswith("the split test is left out") and why in remark for remark in source.remarks)
    (root / "data.yaml").write_text(f"train: {place}\ntest: images/train\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match=f"train: {why}"):
        read(root)


def test_a_listed_photo_that_is_not_there(make: Make) -> None:
    files = {"t.txt": "images/train/a.jpg\nimages/train/gone.jpg\n../../etc/passwd\n"}
    source = read(make("train: t.txt\nnames: [cat, dog]\n", **USUAL | files))
    assert names(source) == {"train": ["images/train/a.jpg"]}
    assert [fault.partition("t.txt: ")[2][:6] for fault in source.faults] == ["line 2", "line 3"]


def test_a_folder_of_photos_that_is_a_link(make: Make) -> None:
    root = make("train: photos\nnames: [cat, dog]\n", **USUAL)
    os.symlink(root / "images" / "train", root / "photos")
    os.symlink(root, root / "photos" / "up")
    source = read(root)
    assert names(source) == {"train": ["a.jpg"]} and not source.faults
    assert not any("no label file" in remark for remark in source.remarks)
    os.symlink(root / "images" / "train", root / "images" / "deep")
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert names(read(root)) == {"train": ["deep/a.jpg", "train/a.jpg"]}


def test_the_rule_from_photo_to_label() -> None:
    assert label_of("/d/images/x/images/a.b.jpg") == "/d/images/x/labels/a.b.txt"
    assert label_of("/d/images2/a.jpg") == "/d/images2/a.txt"
