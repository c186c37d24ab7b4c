"""The reader of COCO panoptic JSONs: what it accepts, the words for what it refuses, and files of another kind."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hand_made_dataset import HandMade
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.listing import Listing
from upsnet.datasets.panoptic_json import read_categories
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.metrics.pq_files import evaluate

Content = dict[str, Any]
Change = Callable[[Content], Any]


def first_segment(content: Content) -> dict[str, Any]:
    found: dict[str, Any] = content["annotations"][0]["segments_info"][0]
    return found


def open_split(hand_made: HandMade, content: Content) -> PanopticFolder:
    return PanopticFolder(Split(**hand_made(content)))


def as_floats(node: Any) -> Any:
    """As pandas writes it: every integer as 1.0."""
    if isinstance(node, dict):
        return {key: as_floats(value) for key, value in node.items()}
    if isinstance(node, list):
        return [as_floats(value) for value in node]
    return float(node) if isinstance(node, int) else node


def test_whole_numbers_may_be_floats(hand_made: HandMade, content: Content) -> None:
    plain = open_split(hand_made, content)
    floats = open_split(hand_made, as_floats(content))
    assert list(floats.records) == list(plain.records) and floats.categories == plain.categories
    assert floats.records.sizes.tolist() == [[6, 8]] and not floats.warnings
    assert all(type(segment.id) is type(segment.category_id) is int for segment in floats.records[0].segments)
    assert check_split(floats.split, 1, progress=False).tally.counts == {}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_at_the_start(hand_made: HandMade, content: Content, encoding: str) -> None:
    content["categories"][0]["name"] = "кот"
    paths = hand_made(content)
    paths["json_file"].write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert PanopticFolder(Split(**paths)).categories.names[2] == "кот"


def test_what_is_missing_and_harmless_is_one_line_a_kind(hand_made: HandMade, content: Content) -> None:
    for info in content["annotations"][0]["segments_info"]:
        del info["iscrowd"]
    del content["images"][0]["width"], content["categories"][1]["color"]
    content["categories"][0]["isthing"] = True
    folder = open_split(hand_made, content)
    assert not any(segment.iscrowd for segment in folder.records[0].segments)
    assert folder.read(folder.records[0])[1].shape == (6, 8)
    assert [line.split("set.json: ")[1] for line in folder.warnings] == [
        "image 42: segment 70000 has no iscrowd; 0 is taken "
        "(and 4 more: no iscrowd: 0 is taken (the official tools want it))",
        "image 42: no width or no height",
        "category 9 'dog': no colour",
    ]


def test_ids_of_64_bits_with_a_sign(hand_made: HandMade, content: Content) -> None:
    lowest = -(2**63) + 1
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = lowest
    content["categories"][0]["id"] = 2**63 - 1
    for info in content["annotations"][0]["segments_info"]:
        info["category_id"] = 2**63 - 1 if info["category_id"] == 3 else info["category_id"]
    folder = open_split(hand_made, content)
    assert folder.records.image_ids.tolist() == [lowest] and folder.categories[3].id == 2**63 - 1


REFUSED: list[tuple[Change, str]] = [
    (lambda c: first_segment(c).update(iscrowd="0"),
     "image 42: segment 70000: 'iscrowd' is '0', not 0 or 1: it is text; write the number 0 without quotes"),
    (lambda c: first_segment(c).update(iscrowd=None), "image 42: segment 70000: 'iscrowd' is None, not 0 or 1"),
    (lambda c: first_segment(c).update(category_id="9"),
     "image 42: segment 70000: 'category_id' is '9', not an integer: it is text; write the number 9 without quotes"),
    (lambda c: first_segment(c).update(id=True), "image 42: segments_info[0]: 'id' is True, not an integer"),
    (lambda c: first_segment(c).update(area=float("nan")), "image 42: segment 70000: 'area' is nan, not a number"),
    (lambda c: first_segment(c).pop("area"), "image 42: segment 70000 has no area; write its pixel count"),
    (lambda c: c["images"][0].update(id="42"),
     "images[0]: 'id' is '42', not an integer: it is text; write the number 42 without quotes"),
    (lambda c: c["images"][0].update(id=True), "images[0]: 'id' is True, not an integer"),
    (lambda c: c["images"][0].update(height="6"),
     "image 42: 'height' is '6', not an integer from 1 to 2147483647: it is text; write the number 6 without quotes; "
     "write the photo's height"),
    (lambda c: c["images"][0].update(file_name="/a.png"),
     "images[0]: image 42: 'file_name' '/a.png' is not inside the folder; write it as seen from there"),
    (lambda c: c["images"][0].update(file_name="a\nb"), "images[0]: image 42: 'file_name' 'a\\nb' names no file"),
    (lambda c: c["categories"][0].update(id="3"),
     "categories[0]: 'id' is '3', not an integer of 64 bits: it is text; write the number 3 without quotes"),
    (lambda c: c["categories"][0].update(id=10**400),
     "categories[0]: 'id' is 1" + 39 * "0" + ", not an integer of 64 bits"),
    (lambda c: c["categories"][0].update(name="a\u2028b"),
     "category 3 'a\\u2028b': its name has a line break or a control character, or nothing that is visible; "
     "write it on one line"),
    (lambda c: c["categories"].clear(), "lists no categories"),
    (lambda c: c.update(images=None), "no list 'images'; wanted is COCO panoptic: lists images, annotations with "
     "segments_info, and categories, and a PNG an image"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_everything_refuses_in_the_doctors_words(
    hand_made: HandMade, content: Content, change: Change, words: str
) -> None:
    change(content)
    paths = hand_made({"categories": []})
    paths["json_file"].write_text(json.dumps(content))
    texts = [text for each in check_split(Split(**paths), 1, progress=False).tally.texts.values() for text in each]
    assert words in texts
    with pytest.raises(InputError) as caught:
        PanopticFolder(Split(**paths))
    assert str(caught.value) == f"{paths['json_file']}: {words}"


BOX = {"image_id": 42, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
INSTANCE = BOX | {"segmentation": [[0, 0, 2, 0, 2, 2]]}
OTHER: list[tuple[Any, str]] = [
    (
        {"images": [{"id": 42}], "annotations": [INSTANCE] * 9, "categories": [{"id": 3}]},
        "instances JSON.*upsnet data from-instances",
    ),
    ({"images": [{"id": 42}], "annotations": [BOX] * 9, "categories": []}, "JSON of boxes.*--boxes fill"),
    ({"annotations": [INSTANCE], "categories": [{"id": 3, "frequency": "r"}]}, "LVIS.*upsnet data from-instances"),
    ({"annotations": [INSTANCE | {"keypoints": []}]}, "keypoints JSON.*upsnet data from-instances"),
    ({"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]}, "captions"),
    ([BOX | {"score": 0.5}] * 9, "result list of detections"),
    ([{"image_id": 42, "file_name": "a.png", "segments_info": []}], "bare list of panoptic annotations"),
    ([{"id": 3, "name": "cat", "isthing": 1}], "bare list of categories"),
    ({"shapes": [], "imagePath": "a.jpg", "imageHeight": 6}, "Labelme.*upsnet data from-labelme"),
    ({"size": {}, "objects": [], "tags": []}, "Supervisely JSON.*upsnet data from-supervisely"),
    ({"classes": [], "tags": []}, "Supervisely project's meta.json.*upsnet data from-supervisely"),
    ({"a.jpg8": {"filename": "a.jpg", "regions": []}}, "VGG Image Annotator.*as COCO"),
    ([{"file_name": "a.jpg", "image_id": 1, "annotations": []}], "detectron2.*as COCO"),
    ([{"id": 1, "data": {}, "annotations": []}], "Label Studio.*as COCO"),
    ({"contested_pixels": 0, "shapes_without_segment": []}, "report of a conversion.*lies beside it"),
    ({"imgWidth": 8, "imgHeight": 6, "objects": []}, "Cityscapes JSON.*upsnet data cityscapes"),
    ({"_via_img_metadata": {}}, "VGG Image Annotator"),
    ({"name": "x", "categories": [], "resize": {}, "max_detections": 9}, "manifest"),
    ({"results": {}, "per_class": {}}, "report of figures"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "name"), OTHER, ids=[name for _, name in OTHER])
def test_a_file_of_another_kind_is_one_finding(hand_made: HandMade, content: Content, other: Any, name: str) -> None:
    paths = hand_made(content)
    paths["json_file"].write_text(json.dumps(other))
    tally = check_split(Split(**paths), 1, progress=False).tally
    assert tally.counts == {"other-format": 1}
    (text,) = tally.texts["other-format"]
    assert re.search(f"this is (a|an|the) .*{name}", text) and "wanted is COCO panoptic" in text
    with pytest.raises(InputError, match=re.escape(f"set.json: {text}")):
        PanopticFolder(Split(**paths))
    with pytest.raises(InputError, match=re.escape(f"set.json: {text}")):
        evaluate(paths["json_file"], paths["json_file"])


def test_predictions_and_yaml_in_the_place_of_truth(hand_made: HandMade, content: Content) -> None:
    del content["images"]
    paths = hand_made(content)
    tally = check_split(Split(**paths), 1, progress=False).tally
    assert tally.counts == {"json": 1} and "predictions look like this" in tally.texts["json"][0]
    yolo = paths["json_file"].with_suffix(".yaml")
    yolo.write_text("names: [cat, dog]\n")
    with pytest.raises(InputError, match=r"not valid JSON.*this is a YAML file; wanted is COCO panoptic.*from-yolo"):
        PanopticFolder(Split(**paths | {"json_file": yolo}))
    cvat = paths["json_file"].with_suffix(".xml")
    cvat.write_text("<annotations/>")
    with pytest.raises(InputError, match=r"not valid JSON.*this is an XML file; wanted is COCO panoptic.*from-cvat"):
        PanopticFolder(Split(**paths | {"json_file": cvat}))


def test_names_of_another_system(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.png", unicodedata.normalize("NFD", "café.jpg"), "IMG.JPG"):
        (tmp_path / "deep" / name).touch()
    listing = Listing(tmp_path)
    for name, words in (
        ("deep\\a.png", "backslashes, as Windows writes paths: 'deep/a.png' is there"),
        ("C:\\data\\a.png", "backslashes, as Windows writes paths: 'C:/data/a.png' is what other"),
        (unicodedata.normalize("NFC", "deep/café.jpg"), "is there, which differs in the Unicode normal form"),
        ("deep/img.jpg", "'deep/IMG.JPG' is there, which differs in upper and lower case"),
        ("deep/a.jpg", "'deep/a.png' is there, which differs in its suffix"),
    ):
        assert name not in listing and words in listing.hint(name)
    assert listing.hint("deep/z.png") == listing.hint("none/a.png") == ""


def test_a_table_of_categories(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "table.json"
    for whole in (content, content["categories"]):
        path.write_text(json.dumps(whole))
        assert read_categories(path).names == ["sky", "sea", "cat", "dog"]
    for entries, words in (
        ([], "the list is empty"),
        ([{"id": 3, "name": "cat"}], "'isthing' is missing"),
        (content["categories"][:1] * 2, "its id is also that of 'cat'"),
        ({"names": ["cat"]}, "holds no list of categories"),
    ):
        path.write_text(json.dumps(entries))
        with pytest.raises(InputError, match=rf"table\.json: .*{words}"):
            read_categories(path)
