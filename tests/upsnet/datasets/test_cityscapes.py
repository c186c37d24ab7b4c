"""Panoptic truth of Cityscapes: against the official label table and a by-the-book conversion, one mask a segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.folders import find_folders
from upsnet.categories import Categories
from upsnet.command_line.command import make_app
from upsnet.datasets.cityscapes import categories, main, make_split, read_instances
from upsnet.datasets.cityscapes_labels import LABELS
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

CITIES = ("aachen", "bochum")


def random_values(seed: int, shape: tuple[int, int] = (24, 40)) -> np.ndarray:
    """An instanceIds map of rectangles: stuff, ignored labels, instances and groups of things without instances."""
    draws = np.random.default_rng(seed)
    values = np.full(shape, 7, np.int32)
    chosen = [0, 1, 3, 4, 9, 11, 21, 23, 24, 26, 29, 24000, 24001, 26000, 26017, 29000, 30001, 33002, 16, 8]
    for value in draws.choice(chosen, 14):
        y, x = draws.integers(0, shape[0] - 3), draws.integers(0, shape[1] - 3)
        values[y : y + draws.integers(1, 12), x : x + draws.integers(1, 20)] = value
    return values


def write_image(root: Path, split: str, city: str, frame: int, values: np.ndarray) -> Path:
    stem = f"{city}_000000_{frame:06d}"
    labels = root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png"
    photo = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    for path in (labels, photo):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(labels)
    Image.new("RGB", values.shape[::-1], (60, 70, 80)).save(photo)
    return labels


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for number, city in enumerate(CITIES):
            for frame in range(count):
                write_image(tmp_path, split, city, 19 + frame, random_values(10 * number + frame))
    return tmp_path


def by_the_book(values: np.ndarray, train_ids: bool, table: list[dict[str, Any]]) -> tuple[np.ndarray, list[Any]]:
    """The official rules, one mask for each value; `table` is the official one."""
    label_of = {label["id"]: label for label in table}
    ids = np.zeros(values.shape, int)
    segments = []
    for value in sorted(set(values.ravel().tolist())):
        grouped = value < 1000
        label = label_of[value] if grouped else label_of[int(str(value)[:-3])]
        if label["ignoreInEval"]:
            continue
        mask = values == value
        ids[mask] = value
        ys, xs = np.where(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        category = label["trainId"] if train_ids else label["id"]
        crowd = 1 if grouped and label["hasInstances"] else 0
        entry = {"id": value, "category_id": category, "area": mask.sum(), "bbox": box, "iscrowd": crowd}
        segments.append(entry)
    return ids, segments


def test_the_label_table_is_the_official_one(shared_data: Path) -> None:
    official = json.loads((shared_data / "cityscapes_labels.json").read_text())
    keys = ("name", "id", "trainId", "category", "hasInstances", "ignoreInEval")
    assert [(*(label[key] for key in keys), tuple(label["color"])) for label in official] == list(LABELS)


def test_categories() -> None:
    for train_ids in (False, True):
        table = Categories.from_coco(categories(train_ids))
        assert (table.num_stuff, table.num_things) == (11, 8)
        assert table.names[:2] == ["road", "sidewalk"] and table.names[11:13] == ["person", "rider"]
        assert table[18].name == "bicycle" and table[18].id == (18 if train_ids else 33)
    assert categories(False)[0] == {
        "id": 7, "name": "road", "color": [128, 64, 128], "supercategory": "flat", "isthing": 0,
    }  # fmt: skip


def test_a_map_by_hand(tmp_path: Path) -> None:
    values = np.array([[7, 7, 26001, 26001], [7, 26, 26001, 0], [23, 26, 29000, 9]])
    write_image(tmp_path, "val", "aachen", 1, values)
    paths, written = make_split(tmp_path, "val", False, 1)
    assert paths.json_file == tmp_path / "gtFine/cityscapes_panoptic_val.json" and written == 1
    content = json.loads(paths.json_file.read_text())
    assert content["images"] == [
        {"id": 1, "width": 4, "height": 3, "file_name": "aachen/aachen_000000_000001_leftImg8bit.png",
         "original_id": "aachen_000000_000001"}
    ]  # fmt: skip
    (annotation,) = content["annotations"]
    assert annotation["image_id"] == 1 and annotation["file_name"] == "aachen_000000_000001_gtFine_panoptic.png"
    assert annotation["segments_info"] == [
        {"id": 7, "category_id": 7, "area": 3, "bbox": [0, 0, 2, 2], "iscrowd": 0},
        {"id": 23, "category_id": 23, "area": 1, "bbox": [0, 2, 1, 1], "iscrowd": 0},
        {"id": 26, "category_id": 26, "area": 2, "bbox": [1, 1, 1, 2], "iscrowd": 1},
        {"id": 26001, "category_id": 26, "area": 3, "bbox": [2, 0, 2, 2], "iscrowd": 0},
    ]
    png = read_panoptic_png(paths.segments / annotation["file_name"])
    assert png.tolist() == [[7, 7, 26001, 26001], [7, 26, 26001, 0], [23, 26, 0, 0]]


@pytest.mark.parametrize("train_ids", [False, True])
def test_against_the_book(cityscapes: Path, shared_data: Path, train_ids: bool) -> None:
    table = json.loads((shared_data / "cityscapes_labels.json").read_text())
    paths, written = make_split(cityscapes, "train", train_ids, 2)
    assert written == 4 and paths.json_file.stem == f"cityscapes_panoptic_train{'_trainId' if train_ids else ''}"
    content = json.loads(paths.json_file.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    labels = sorted((cityscapes / "gtFine/train").glob("*/*.png"))
    for image, annotation, path in zip(content["images"], content["annotations"], labels, strict=True):
        assert path.name == f"{image['original_id']}_gtFine_instanceIds.png"
        ids, segments = by_the_book(read_instances(path), train_ids, table)
        assert np.array_equal(read_panoptic_png(paths.segments / annotation["file_name"]), ids)
        assert annotation["segments_info"] == segments


def test_the_result_is_a_sound_data_set(cityscapes: Path) -> None:
    for split in ("train", "val"):
        make_split(cityscapes, split, False, 1)
        make_split(cityscapes, split, True, 1)
    found = find_folders(cityscapes)
    assert [paths.images.name for paths in found] == ["train", "train", "val", "val"]
    for paths in found:
        assert check_split(paths, 1, progress=False).tally.errors == 0
        assert len(PanopticFolder(paths)) == len(list(paths.images.glob("*/*.png")))


def test_it_goes_on_where_it_stopped_and_trusts_nothing_half_made(cityscapes: Path) -> None:
    paths, written = make_split(cityscapes, "train", False, 1)
    assert written == 4
    content = paths.json_file.read_bytes()
    first, second, third, fourth = sorted(paths.segments.iterdir())
    whole = {path: path.read_bytes() for path in (first, second, third, fourth)}
    first.unlink()
    second.write_bytes(whole[second][:-40])
    third.write_bytes(whole[fourth])
    before = fourth.stat().st_mtime_ns
    assert make_split(cityscapes, "train", False, 1)[1] == 3
    assert {path: path.read_bytes() for path in whole} == whole and paths.json_file.read_bytes() == content
    assert fourth.stat().st_mtime_ns == before


def test_a_failure_leaves_no_json_not_even_an_old_one(cityscapes: Path) -> None:
    paths, _ = make_split(cityscapes, "train", False, 1)
    labels = write_image(cityscapes, "train", "bochum", 20, np.full((24, 40), 34))
    with pytest.raises(InputError, match=f"{labels.name}: value 34 belongs to no label") as error:
        make_split(cityscapes, "train", False, 1)
    assert not paths.json_file.exists() and "\n" not in str(error.value)
    write_image(cityscapes, "train", "bochum", 20, np.full((24, 40), 35_012))
    with pytest.raises(InputError, match="value 35012 belongs"):
        make_split(cityscapes, "train", False, 2)


def test_faults_are_named(cityscapes: Path) -> None:
    labels = cityscapes / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"
    photo = cityscapes / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    whole = labels.read_bytes()
    for content, message in ((whole[:-30], "not a readable PNG"), (b"", "not a readable PNG")):
        labels.write_bytes(content)
        with pytest.raises(InputError, match=f"{labels.name}: {message}"):
            make_split(cityscapes, "train", False, 1)
    Image.new("RGB", (40, 24)).save(labels)
    with pytest.raises(InputError, match="a PNG of mode RGB"):
        make_split(cityscapes, "train", False, 1)
    labels.write_bytes(whole)
    Image.new("RGB", (40, 25)).save(photo)
    with pytest.raises(InputError, match=r"is 40 x 25 pixels .*instanceIds.png 40 x 24"):
        make_split(cityscapes, "train", False, 1)
    photo.unlink()
    with pytest.raises(InputError, match=r"leftImg8bit/train: lacks 1 of 4 .*n_000000_000019; unpack leftImg8bit_"):
        make_split(cityscapes, "train", False, 1)
    labels.unlink()
    Image.new("RGB", (40, 24)).save(photo.with_name("aachen_000000_000099_leftImg8bit.png"))
    with pytest.raises(InputError, match=r"gtFine/train: lacks 1 of 4 .*000099; unpack gtFine_trainvaltest"):
        make_split(cityscapes, "train", False, 1)
    write_image(cityscapes, "train", "aachen", 99, np.full((24, 40), 7))
    labels.with_name("x_gtFine_instanceIds.png").write_bytes(whole)
    (cityscapes / "gtFine/train/bochum/x_gtFine_instanceIds.png").write_bytes(whole)
    with pytest.raises(InputError, match="have one name"):
        make_split(cityscapes, "train", False, 1)
    with pytest.raises(InputError, match="gtFine/test: no <city>"):
        make_split(cityscapes, "test", False, 1)


def test_command_line(cityscapes: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(make_app(main), [str(cityscapes), "--workers", "1", *arguments])

    short = run()
    assert short.exit_code == 2 and "train: 4 images; the official number is 2975; --partial" in short.stderr
    assert not list((cityscapes / "gtFine").glob("*.json"))
    made = run("--partial", "--split", "val", "train")
    assert made.exit_code == 0, made.output
    assert f"    segments: {cityscapes / 'gtFine/cityscapes_panoptic_val'}" in made.output.splitlines()
    assert "the official number is 500" in made.stderr
    assert run("--split", "vall").exit_code == 2
