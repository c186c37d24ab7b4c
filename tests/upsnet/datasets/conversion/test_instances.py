"""COCO instances JSON: the official truth comes back, and what is wrong is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

from tests.upsnet.datasets.conversion.instances_writer import Kind, write_instances
from tests.upsnet.datasets.conversion.truth import Truth, pixels
from upsnet.datasets.conversion.convert import LabelFaults, Rules, convert
from upsnet.datasets.conversion.instances import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.doctor.json_file import in_folders
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]
GOOD: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}],
    "annotations": [{"id": 3, "image_id": 7, "category_id": 2, "segmentation": [SQUARE], "iscrowd": 0}],
    "categories": [{"id": 2, "name": "cat"}, {"id": 18, "name": "dog"}],
}


def write(folder: Path, content: object, name: str = "labels.json", photos: tuple[str, ...] = ("a.png",)) -> Path:
    for photo in photos:
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / photo)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def good(**annotation: object) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    content["annotations"][0].update(annotation)
    return content


def convert_one(path: Path, out: Path, rules: Rules = Rules(), **options: Any) -> PanopticFolder:  # noqa: B008
    (made,) = convert(read(path, **options), out, rules=rules, progress=False)
    assert not made.checkup.tally.errors
    return PanopticFolder(made.split)


@pytest.mark.parametrize("kind", ["polygons", "compressed", "plain"])
def test_the_official_truth_comes_back(shared_data: Path, tmp_path: Path, kind: Kind) -> None:
    truth = Truth(shared_data)
    write_instances(truth.data, tmp_path, kind)
    source = read(
        tmp_path / "instances.json",
        in_folders(truth.data.split).images,
        stuff_pngs=tmp_path / "stuff",
        stuff_classes=tmp_path / "stuff.csv",
    )
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert not made.checkup.tally.errors and not made.contested and not made.lost
    data = PanopticFolder(made.split)
    assert pixels(data) == pixels(truth.data)
    assert [record.image_id for record in data.records] == [record.image_id for record in truth.data.records]
    official = {each.id: each for each in truth.data.categories}
    used = {segment.category_id for record in truth.data.records for segment in record.segments}
    same = [each for each in data.categories if each.id in used]
    assert [(each.id, each.name, each.isthing) for each in same] == [
        (each.id, each.name, each.isthing) for each in truth.data.categories if each.id in used
    ]
    assert all(each.color == official[each.id].color for each in same if each.isthing)


def test_things_alone(tmp_path: Path) -> None:
    data = convert_one(write(tmp_path, GOOD), tmp_path / "out")
    _, ids = data.read(data.records[0])
    expected = np.zeros((6, 8), int)
    expected[1:4, 1:5] = 1
    assert (ids == expected).all() and data.records[0].image_id == 7
    assert [each.name for each in data.categories] == ["cat", "dog"]


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[[1, 1], [5, 1], [5, 4], [1, 4]]],
        [[1, 1], [5, 1.0], [5, 4], [1, 4]],
        [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 5, 1, 5, 4, 3, 4]],
        {"size": [6, 8], "counts": [7, 3, 3, 3, 3, 3, 3, 3, 20]},
        {"size": [6.0, 8.0], "counts": "compressed"},
    ],
)
def test_forms_of_one_outline(tmp_path: Path, segmentation: Any) -> None:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        import hotcoco

        mask = np.zeros((6, 8), np.uint8, order="F")
        mask[1:4, 1:5] = 1
        segmentation["counts"] = hotcoco.mask.encode(mask)["counts"].decode()
    data = convert_one(write(tmp_path, good(segmentation=segmentation)), tmp_path / "out")
    _, ids = data.read(data.records[0])
    assert ids.sum() == 12 and ids[1:4, 1:5].all()


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        ({"category_id": 9}, r"annotation 3: has the unknown category 9; add it"),
        ({"category_id": "2"}, r"annotation 3: 'category_id' is '2', .* write the number 2 without quotes"),
        ({"image_id": 8}, r"annotations\[0\]: its image 8 is not among the images"),
        ({"iscrowd": "0"}, r"annotation 3 \(cat\): 'iscrowd' is '0', not 0 or 1"),
        ({"segmentation": [[1, 2, 3]]}, r"polygon 0 has 3 numbers, which are no pairs"),
        ({"segmentation": [[1, 2, "3", 4, 5, 6]]}, r"polygon 0 has '3', which is no finite number"),
        ({"segmentation": [[1, 2, 900, 4, 5, 6]]}, r"the point \(900, 4\) is far outside the photo"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"is of 6 x 8 pixels, the photo is 8 x 6"),
        ({"segmentation": {"size": [6, 8], "counts": [40]}}, r"covers 40 pixels, the photo has 48"),
        ({"segmentation": {"counts": [48]}}, r"'size' of its run lengths is None"),
        ({"segmentation": [], "bbox": [1, 1, 4, 3]}, r"annotation 3 \(cat\): a box, which has no outline; --boxes"),
        ({"segmentation": 7}, r"'segmentation' is 7, neither"),
    ],
)
def test_faults_name_the_annotation(tmp_path: Path, annotation: dict[str, Any], fault: str) -> None:
    with pytest.raises(LabelFaults, match=fault):
        convert(read(write(tmp_path, good(**annotation))), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "wanted is COCO's instances JSON"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        (
            {"images": [], "annotations": [{"segments_info": []}], "categories": []},
            "a COCO panoptic JSON, which needs no",
        ),
        ({"shapes": [], "imagePath": "a.png"}, "this is a Labelme JSON"),
        (GOOD | {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "its id 1 is another category's too"),
        (GOOD | {"categories": [{"id": 1}]}, r"categories\[0\]: 'name' is None"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: object, fault: str) -> None:
    with pytest.raises(InputError, match=rf"labels.json.*{fault}"):
        read(write(tmp_path, content))


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([{"id": 7, "file_name": "b.png"}], "image 7: its photo 'b.png' is not in"),
        ([{"id": 7, "file_name": "../a.jpg"}], "image 7: its photo '../a.jpg' is not in"),
        ([{"id": 7}], r"images\[0\]: key 'file_name' is missing"),
        ([{"id": "7", "file_name": "a.png"}], r"images\[0\]: 'id' is '7', .* without quotes"),
        ([{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}], "image 7: its photo a.png is another"),
        ([{"id": 7, "file_name": "a.png", "height": 5, "width": 8}], "the labels are for 8 x 5 pixels"),
    ],
)
def test_images_that_do_not_fit(tmp_path: Path, images: list[Any], fault: str) -> None:
    with pytest.raises(LabelFaults, match=fault):
        convert(read(write(tmp_path, GOOD | {"images": images})), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_box_and_what_has_nothing(tmp_path: Path) -> None:
    content = good(segmentation=[], bbox=[1, 1, 4, 3])
    content["annotations"].append({"id": 4, "image_id": 7, "category_id": 18, "bbox": [0, 0, 0, 0]})
    source = read(write(tmp_path, content))
    (made,) = convert(source, tmp_path / "out", rules=Rules(boxes="crowd"), progress=False)
    assert (made.counts["cat"].crowds, made.counts["cat"].pixels) == (1, 12)
    assert made.left_out == {"annotation without outline and box": 1}


def test_photos_in_other_folders(tmp_path: Path) -> None:
    """A name's folders count as far as the photos' have any: labels never come to another photo of the same name."""
    images = [{"id": 7, "file_name": "x/b.png"}, {"id": 8, "file_name": "y/b.png"}]
    path = write(tmp_path, GOOD | {"images": images}, photos=("y/b.png",))
    source = read(path)
    assert [(item.name, item.image_id) for item in source.splits["all"]] == [("y/b.png", 8)]
    (fault,) = source.faults
    assert fault.startswith("labels.json: image 7: its photo 'x/b.png' is not in")
    assert fault.endswith("; 'y/b.png' is there, in another folder")
    flat = tmp_path / "flat"
    source = read(write(flat, GOOD | {"images": images}, photos=("b.png",)))
    assert not source.splits["all"] and len(source.faults) == 2  # which of the two is it?
    source = read(write(flat, GOOD | {"images": [{"id": 7, "file_name": "C:\\me\\x\\b.png"}]}))
    assert [item.name for item in source.splits["all"]] == ["b.png"]
    assert (
        source.remarks[0] == "1 photos lie in other folders than the labels say, as b.png for 'C:\\\\me\\\\x\\\\b.png'"
    )


def test_photos_that_are_not_listed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, photos=("a.png", "b.png"))
    assert read(path).remarks == [
        "labels.json: 1 photos are not in the JSON and left out (--unlabelled: they show no object), as b.png"
    ]
    data = convert_one(path, tmp_path / "out", unlabelled=True)
    assert [(record.image_id, len(record.segments)) for record in data.records] == [(7, 1), (8, 0)]


def test_roboflow(tmp_path: Path) -> None:
    content = GOOD | {
        "categories": [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 2, "name": "cat", "supercategory": "pets"},
        ]
    }
    for folder in ("train", "valid"):
        write(tmp_path, content, f"{folder}/_annotations.coco.json", (f"{folder}/a.png",))
    source = read(tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert [each.name for each in source.classes] == ["cat"]
    assert "'pets' (0) is Roboflow's name for all" in source.remarks[0]
    made = convert(source, tmp_path / "out", progress=False)
    assert [each.checkup.tally.images for each in made] == [1, 1]


def test_cvats_layout(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "annotations/instances_default.json", ("images/default/a.png",))
    for given in (path, tmp_path):
        source = read(given)
        assert [item.photo for item in source.splits["all"]] == [tmp_path / "images" / "default" / "a.png"]


def test_cvats_masks_are_called_crowds(tmp_path: Path) -> None:
    run_lengths = {"size": [6, 8], "counts": [7, 3, 38]}
    path = write(tmp_path, good(iscrowd=1, attributes={"occluded": False}, segmentation=run_lengths))
    (remark,) = read(path).remarks
    assert remark.startswith("labels.json: 1 annotations are crowds, and so are all masks that CVAT")
    assert remark.endswith("if they are single objects: --no-crowds")
    assert convert_one(path, tmp_path / "out").records[0].segments[0].iscrowd
    assert not any("crowds" in each for each in read(path, no_crowds=True).remarks)
    assert not convert_one(path, tmp_path / "objects", no_crowds=True).records[0].segments[0].iscrowd


def test_stuff_below(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "stuff").mkdir()
    values = np.full((6, 8), 91, np.uint8)
    values[5] = 255
    values[1:4, 1:5] = 1  # the object's own pixels: what the map says of a thing does not count
    Image.fromarray(values).save(tmp_path / "stuff" / "a.png")
    (tmp_path / "stuff.txt").write_text("0: unlabeled\n2: cat\n92: banner\n")
    options: dict[str, Any] = {
        "stuff_pngs": tmp_path / "stuff",
        "stuff_classes": tmp_path / "stuff.txt",
        "stuff_zero_based": True,
    }
    data = convert_one(path, tmp_path / "out", **options)
    _, ids = data.read(data.records[0])
    names = {
        segment.id: data.categories[data.categories.index_of_id(segment.category_id)]
        for segment in data.records[0].segments
    }
    assert {(names[id].name, names[id].isthing, int((ids == id).sum())) for id in names} == {
        ("cat", True, 12),
        ("banner", False, 28),
    }
    with pytest.raises(InputError, match="--stuff-pngs needs --stuff-classes"):
        read(path, stuff_pngs=tmp_path)
    (tmp_path / "stuff" / "a.png").unlink()
    with pytest.raises(LabelFaults, match="no map of stuff"):
        convert(read(path, **options), tmp_path / "out2", progress=False)


def test_a_class_as_stuff_and_a_background(tmp_path: Path) -> None:
    choice = Choice(stuff=["cat"], background="rest")
    (made,) = convert(read(write(tmp_path, GOOD)), tmp_path / "out", choice, progress=False)
    assert {name: count.pixels for name, count in made.counts.items() if name} == {"cat": 12, "rest": 36}


def test_label_studios_layout(tmp_path: Path) -> None:
    """Ids from 0, `images\\` before the names."""
    content = {
        "images": [{"id": 0, "file_name": "images\\ab12-a.png", "height": 6, "width": 8}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [{**GOOD["annotations"][0], "id": 0, "image_id": 0, "category_id": 0, "ignore": 0}],
    }
    path = write(tmp_path, content, "result.json", ("images/ab12-a.png",))
    data = convert_one(path, tmp_path / "out")
    assert [(each.image_id, each.file_name) for each in data.records] == [(0, "ab12-a.png")]
    assert [(each.id, each.name) for each in data.categories] == [(0, "cat")]


def test_lvis(tmp_path: Path) -> None:
    image = {"id": 7, "coco_url": "http://x.org/train2017/a.png", "not_exhaustive_category_ids": [2]}
    content = GOOD | {"images": [image]}
    write(tmp_path, content, "annotations/lvis_v1_train.json", ("train2017/a.png", "val2017/a.png"))
    (item,) = read(tmp_path / "annotations" / "lvis_v1_train.json").splits["train"]
    assert item.photo == tmp_path / "train2017" / "a.png"


def test_images_without_annotation_are_images_without_objects(tmp_path: Path) -> None:
    content = GOOD | {"images": [*GOOD["images"], {"id": 9, "file_name": "b.png"}]}
    source = read(write(tmp_path, content, photos=("a.png", "b.png")))
    assert source.remarks == ["labels.json: 1 images have no annotation, which means no objects, as b.png"]
    assert len(source.splits["all"]) == 2


def test_annotations_of_an_unlisted_image_are_one_fault(tmp_path: Path) -> None:
    content = GOOD | {"annotations": [*GOOD["annotations"], *[good(image_id=8)["annotations"][0]] * 3]}
    (fault,) = read(write(tmp_path, content)).faults
    what = "its image 8 (and those of 2 more annotations) is not among the images; list it there"
    assert fault == f"labels.json: annotations[1]: {what}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_are_not_finite(tmp_path: Path, number: str) -> None:
    path = write(tmp_path, good(segmentation=[[1, 1, 5, 1, 5, 4.25, 1, 4]]))
    path.write_text(path.read_text().replace("4.25", number))
    with pytest.raises(LabelFaults, match=r"annotation 3 \(cat\).* finite"):
        convert(read(path), tmp_path / "out", progress=False)


def test_stuff_has_cocos_colours_and_void_values(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    values = np.full((6, 8), 92, np.uint8)
    values[5], values[4] = 255, 183
    Image.fromarray(values).save(tmp_path / "a.stuff.png")
    (tmp_path / "stuff").mkdir()
    (tmp_path / "a.stuff.png").rename(tmp_path / "stuff" / "a.png")
    (tmp_path / "stuff.csv").write_text("id,name\n92,banner\n")
    options: dict[str, Any] = {"stuff_pngs": tmp_path / "stuff", "stuff_classes": tmp_path / "stuff.csv"}
    with pytest.raises(LabelFaults, match=r"value 183 is of no class .*--ignore 183"):
        convert(read(path, **options), tmp_path / "out", progress=False)
    data = convert_one(path, tmp_path / "out", **options, ignore=["183", "255"])
    assert [each.color for each in data.categories if each.name == "banner"] == [(255, 255, 128)]
    assert not data.read(data.records[0])[1][4:].any()


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ["train", "val"]),
        (("annotations/instances_val2017.json", "annotations/captions_val2017.json"), ["val"]),
        (("pets.json",), ["all"]),
        (("valid/_annotations.coco.json",), ["val"]),
        (("north.json", "south.json"), ["north", "south"]),
    ],
)
def test_what_a_folder_holds(tmp_path: Path, files: tuple[str, ...], splits: list[str]) -> None:
    for name in files:
        write(tmp_path, GOOD, name, (str(Path(name).with_name("a.png")), "train2017/a.png", "val2017/a.png"))
    assert list(read(tmp_path).splits) == splits
    if len(files) == 1:
        assert list(read(tmp_path / files[0]).splits) == splits


def test_two_jsons_of_one_split(tmp_path: Path) -> None:
    for name in ("instances_train2014.json", "instances_train2017.json"):
        write(tmp_path, GOOD, f"annotations/{name}")
    with pytest.raises(
        InputError, match=r"several JSONs make a split of one name, as .*instances_train2014.json; give one"
    ):
        read(tmp_path)
