from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.folders import local
from upsnet.datasets.folder import PanopticFolder, check_categories, truth_result
from upsnet.datasets.listing import Listing
from upsnet.datasets.parallel import chunked
from upsnet.datasets.segments import parse_segments
from upsnet.datasets.split import Split
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError


def edit(gt_json: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(gt_json.read_text())
    change(content)
    gt_json.write_text(json.dumps(content))
    return gt_json


def test_pairs_by_image_id_and_keeps_the_order_of_the_images(gt_json: Path) -> None:
    dataset = PanopticFolder(gt_json)  # its annotations are in reverse order
    assert [record.image_id for record in dataset.records] == [10, 11, 12, 13, 14]
    for record in dataset.records:
        photo, ids = dataset.read(record)
        assert photo.shape[:2] == ids.shape
        assert local(record.photo).stem == local(record.png).stem
        assert {segment.id for segment in record.segments} == set(np.unique(ids)) - {0}


def test_records_are_a_sequence(gt_json: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"] = [content["images"][i] for i in (3, 0, 4, 1, 2)]
        content["images"][1].pop("width")
        content["images"][2]["height"] = None
        content["annotations"][0]["segments_info"][0]["note"] = [1.5, None, {"a": "ü"}]

    records = PanopticFolder(edit(gt_json, change)).records
    content = json.loads(gt_json.read_text())
    truth = {
        annotation["image_id"]: parse_segments(annotation["segments_info"], "val.json")
        for annotation in content["annotations"]
    }
    assert len(records) == 5 and [record.image_id for record in records] == [13, 10, 14, 11, 12]
    assert [[record.image_id for record in group] for group in chunked(records, 2)] == [[13, 10], [14, 11], [12]]
    assert all(record.segments == truth[record.image_id] for record in records)
    assert records[-1] == records[4] == list(records)[4] and records[1:4:2] == [records[1], records[3]]
    assert records[0].photo == gt_json.parent / "val/003.png" and records[0].file_name == "003.png"
    assert records[0].png == gt_json.parent / "panoptic_val/003.png"
    assert [record.size for record in records] == [(48, 60), None, None, (48, 48), (64, 48)]
    assert records.sizes.tolist() == [[48, 60], [0, 0], [0, 0], [48, 48], [64, 48]]
    ordered = records.by_image_id()
    assert ordered.image_ids.tolist() == [10, 11, 12, 13, 14] and ordered.sizes[3].tolist() == [48, 60]
    assert [ordered[i] for i in range(5)] == sorted(records, key=lambda record: record.image_id)
    with pytest.raises(IndexError):
        records[5]


def test_photos_in_folders_of_their_own(gt_json: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for number, entry in enumerate(content["images"]):
            entry["file_name"] = f"city{number % 2}/{entry['file_name']}"
            target = gt_json.parent / "val" / entry["file_name"]
            target.parent.mkdir(exist_ok=True)
            (target.parent.parent / target.name).rename(target)

    dataset = PanopticFolder(edit(gt_json, change))
    assert dataset.records[3].file_name == "city1/003.png" and dataset.read(dataset.records[3])[0].shape == (48, 60, 3)


def test_listing_knows_files_and_links_not_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "deep" / "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "none")
    listing = Listing(tmp_path)
    assert [name in listing for name in ("deep/a.png", "link.png")] == [True, True]
    hostile = ("deep", "broken.png", "none/a.png", "a.png", "", "\0", "deep/a.png/x", "x" * 5000)
    assert [name in listing for name in hostile] == [False] * len(hostile)


def test_official_layouts_of_cityscapes() -> None:
    for name in ("cityscapes_panoptic_val", "cityscapes_panoptic_val_trainId"):
        split = Split.usual(Path("x/gtFine") / f"{name}.json")
        assert split.segments == Path("x/gtFine") / name
        assert split.images == Path("x/leftImg8bit/val")


def test_official_layout_is_found(gt_json: Path) -> None:
    official = gt_json.parent / "annotations" / "panoptic_val.json"
    official.parent.mkdir()
    gt_json.rename(official)
    (gt_json.parent / "panoptic_val").rename(official.parent / "panoptic_val")
    assert len(PanopticFolder(official)) == 5


def test_real_coco_sample(shared_data: Path) -> None:
    dataset = PanopticFolder(shared_data / "coco_sample/annotations/panoptic_val2017.json")
    assert (len(dataset), len(dataset.categories)) == (4, 133)
    photo, ids = dataset.read(dataset.records[0])
    truth = truth_result(dataset.records[0], ids, dataset.categories)
    assert photo.shape[:2] == truth.ids.shape
    content = json.loads(local(dataset.split.json_file).read_text())
    infos = {annotation["image_id"]: annotation["segments_info"] for annotation in content["annotations"]}
    assert [(segment.area, list(segment.bbox)) for segment in truth.segments] == [
        (info["area"], info["bbox"]) for info in infos[dataset.records[0].image_id]
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "image 10 is listed twice"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "image 14 has two annotations"),
        (lambda c: c["annotations"].pop(), "image 10 .000.png. has no annotation"),
        (lambda c: c["images"].pop(), "image 14 is annotated but not among the images"),
        (lambda c: c["images"][1].update(file_name="gone.png"), "image 11: its photo .*gone.png is missing"),
        (lambda c: c["annotations"][0].update(file_name="gone.png"), "image 14: its PNG .*gone.png is missing"),
        (lambda c: c["images"][1].update(file_name=7), "image 11: 'file_name' is 7, not a text"),
        (
            lambda c: c["images"][1].update(id=1 << 63),
            r"images\[1\]: the image id 9223372036854775808 has more than 64",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=0),
            r"image 14: segments_info\[0\] lists id 0, which is void",
        ),
        (lambda c: c["annotations"][0].pop("segments_info"), "image 14: key 'segments_info' is missing"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=55),
            "image 14: segment 300004 has the unknown category 55",
        ),
        (lambda c: c.pop("images"), "no list 'images'"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "lists no images"),
    ],
)
def test_refuses(gt_json: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        PanopticFolder(edit(gt_json, change))
    assert "\n" not in str(error.value)


def test_a_photo_of_another_size_names_the_image(gt_json: Path) -> None:
    Image.new("RGB", (64, 47)).save(gt_json.parent / "val" / "000.png")
    dataset = PanopticFolder(gt_json)
    with pytest.raises(
        InputError, match=r"val\.json: image 10: sizes differ: the photo .*000\.png 64 x 47, the PNG .* 64 x 48"
    ):
        dataset.read(dataset.records[0])


def test_names_the_categories_that_differ(gt_json: Path, fake: Callable[..., Any]) -> None:
    check_categories(PanopticFolder(gt_json), fake("a").manifest)

    def change(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "lion"
        content["categories"][3]["id"] = 10
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = 10 if segment["category_id"] == 9 else segment["category_id"]

    edit(gt_json, change)
    with pytest.raises(InputError) as error:
        check_categories(PanopticFolder(gt_json), fake("a").manifest)
    assert "7 'lion' (thing) in the data set, 'cat' (thing) in the model" in str(error.value)
    assert "9 'sky' only in the model" in str(error.value)
    assert "10 'sky' only in the data set" in str(error.value)
    assert "grass" not in str(error.value)


def test_the_runs_own_validation_set(gt_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(gt_json, lambda content: content["annotations"][0]["segments_info"][0].pop("iscrowd"))
    root = gt_json.parent
    split = {"json_file": str(gt_json), "segments": str(root / "panoptic_val"), "images": str(root / "val")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"val": split}}))
    assert len(open_dataset(None, run=tmp_path)) == 5
    assert "has no iscrowd; 0 is taken" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="names no validation set"):
        open_dataset(None, run=tmp_path)
    with pytest.raises(InputError, match="give --gt-json"):
        open_dataset(None, run=tmp_path / "absent")


@pytest.mark.parametrize(
    ("split", "place"),
    [
        ({"json_file": "data/val.json", "segments": "data/panoptic_val", "images": "data/val"}, "data/val.json"),
        ({"shards": "data/val.shards.json"}, "data/val.json"),
        ({"json_file": "/nowhere/val.json", "segments": "/nowhere", "images": "/nowhere"}, "/nowhere/val.json"),
    ],
)
def test_a_run_whose_data_lie_elsewhere(tmp_path: Path, split: dict[str, str], place: str) -> None:
    """Places in a configuration are relative to where training was started."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"val": split}}))
    with pytest.raises(InputError) as error:
        open_dataset(None, run=tmp_path)
    start = "" if place.startswith("/") else "start the command where the run was trained, or "
    config = tmp_path / "config.yaml"
    assert str(error.value) == f"{place}: not there, and {config} names it as the validation set; {start}give --gt-json"
