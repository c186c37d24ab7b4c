"""Where masks, photos and tables lie: Pascal VOC, CVAT, labelme2voc, Mapillary, Roboflow, maps for each class."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.datasets.conversion.test_masks import TABLE, VALUES, run, save
from upsnet.datasets.conversion.convert import LabelFaults, Rules, convert
from upsnet.datasets.conversion.labels import Source
from upsnet.datasets.conversion.mask_folders import voc_color
from upsnet.datasets.conversion.masks import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

PHOTO = np.zeros((*VALUES.shape, 3), np.uint8)
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:51,221,255::\nsky:250,50,83::\n"


def voc(
    root: Path, names: str = "a", photos: str = "JPEGImages", mask: np.ndarray = VALUES, paint: bool = True
) -> Path:
    """Palettes as VOC has them, the border 255 in both masks."""
    for name in names:
        save(root / photos / f"{name}.jpg", PHOTO)
        for folder in ("SegmentationClass", "SegmentationObject"):
            image = Image.fromarray(mask)
            image.putpalette([channel for index in range(256) for channel in voc_color(index)])
            save(root / folder / f"{name}.png", image)
    return root


def splits(source: Source) -> dict[str, list[str]]:
    return {name: [item.name for item in items] for name, items in source.splits.items()}


def test_pascal_vocs_own_classes(tmp_path: Path) -> None:
    """http://host.robots.ox.ac.uk/pascal/VOC/voc2012: 1 aeroplane, 15 person, 255 the border."""
    assert [voc_color(index) for index in (1, 2, 15, 255)] == [
        (128, 0, 0),
        (0, 128, 0),
        (192, 128, 128),
        (224, 224, 192),
    ]
    mask = np.array([[0, 255, 1, 1], [255, 15, 15, 15], [0, 255, 0, 0]], np.uint8)
    source = read(voc(tmp_path, mask=mask))
    ids, segments, _ = run(source, tmp_path / "out")
    assert (ids, segments) == ([[0, 0, 1, 1], [0, 2, 2, 2], [0] * 4], [("aeroplane", 0), ("person", 0)])
    assert "pixels of 'background', 'void' are void; --stuff NAME makes one a class" in source.remarks
    ids, segments, _ = run(source, tmp_path / "out", Choice(stuff=["background"]))
    assert (ids, segments[0]) == ([[1, 0, 2, 2], [0, 3, 3, 3], [1, 0, 1, 1]], ("background", 0))


def test_cvats_segmentation_mask(tmp_path: Path) -> None:
    """Colours of labelmap.txt, and a colour for each object, whose order the labels are drawn in."""
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255), (51, 221, 255)], np.uint8)
    for name in ("a", "sub/b c"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", PHOTO)
        save(tmp_path / "SegmentationClass" / f"{name}.png", colors[VALUES])
        objects = np.array([voc_color(index) for index in range(4)], np.uint8)
        save(tmp_path / "SegmentationObject" / f"{name}.png", objects[VALUES])
    (tmp_path / "labelmap.txt").write_text(CVAT)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text('a\n"sub/b c"\n')
    source = read(tmp_path)
    assert splits(source) == {"all": ["a.jpg", "sub/b c.jpg"]}
    ids, segments, made = run(source, tmp_path / "out", Choice(stuff=["sky"]))
    assert ids == [[0, 0, 3, 3], [1, 1, 3, 3], [1, 1, 2, 2]]
    assert segments == [("cat", 0), ("cat", 0), ("sky", 0)]
    assert [(each.name, each.color) for each in made.table.categories] == [
        ("cat", (51, 221, 255)),
        ("sky", (250, 50, 83)),
    ]
    (tmp_path / "mine.csv").write_text("id,name,isthing\n7,sky,0\n9,cat,1\n")  # masks are read by labelmap.txt
    mine = tmp_path / "mine.csv"
    (made,) = convert(read(tmp_path, classes=mine), tmp_path / "mine", Choice(table=mine), progress=False)
    assert [(each.id, each.isthing) for each in made.table.categories] == [(9, True), (7, False)]


def test_labelme2voc_and_its_palettes(tmp_path: Path) -> None:
    """class_names.txt, a name a line: the index is the line."""
    voc(tmp_path, mask=np.where(VALUES == 3, np.uint8(255), VALUES))
    (tmp_path / "class_names.txt").write_text("_background_\nsky\ncat\n")
    ids, segments, _ = run(read(tmp_path), tmp_path / "out", Choice(stuff=["sky"]))
    assert (ids, segments) == ([[0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 0, 0]], [("sky", 0), ("cat", 0)])


def test_vocs_lists_are_splits(tmp_path: Path) -> None:
    root, lists = voc(tmp_path, "abcd"), tmp_path / "ImageSets" / "Segmentation"
    save(root / "JPEGImages" / "z.jpg", PHOTO)
    lists.mkdir(parents=True)
    for name, stems in {"train": "b\na\n", "val": "\r\nc\r\n", "trainval": "a\nb\nc\n", "test": "z\n"}.items():
        (lists / f"{name}.txt").write_text(stems, newline="")
    (root / "labelmap.txt").write_text("background:::\nsky:::\ncat:::\ndog:::\n")
    source = read(root)
    assert splits(source) == {"train": ["b.jpg", "a.jpg"], "val": ["c.jpg"]}
    for said in (
        "trainval.txt is left out: its names are those of",
        "test.txt is left out: none of its 1",
        "1 masks are in no list",
        "1 photos without a mask",
    ):
        assert any(said in each for each in source.remarks), said
    assert len(convert(source, tmp_path / "out", progress=False)) == 2
    (lists / "val.txt").write_text("c\nz\n")
    with pytest.raises(LabelFaults, match=r"val.txt: z has no mask"):
        convert(read(root), tmp_path / "other", progress=False)
    (lists / "val.txt").write_text("c\na\n")
    with pytest.raises(InputError, match=r"a is in another list too; an image has one split"):
        read(root)


def test_mapillarys_numbers(tmp_path: Path) -> None:
    """The map of instances holds class * 256 + number, and the first number is 0: of class 0 the value is 0."""
    save(tmp_path / "images" / "a.jpg", PHOTO)
    save(tmp_path / "labels" / "a.png", VALUES)
    save(tmp_path / "instances" / "a.png", VALUES.astype(np.uint16) * 256 + np.array([[0, 1, 0, 0]], np.uint16))
    labels = [
        {"name": f"x--{name}", "readable": name, "instances": thing, "color": [9 + place, 0, 0]}
        for place, (name, thing) in enumerate([("Bird", True), ("Sky", False), ("Cat", True), ("Dog", True)])
    ]
    (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
    source = read(tmp_path / "labels", tmp_path / "images", tmp_path / "instances")
    ids, segments, _ = run(source, tmp_path / "out")
    assert ids == [[1, 2, 3, 3], [4, 5, 3, 3], [4, 5, 6, 6]]
    assert segments == [("Bird", 0), ("Bird", 0), ("Sky", 0), ("Cat", 0), ("Cat", 0), ("Dog", 0)]


def test_ade20ks_table_and_colours_of_instances(tmp_path: Path) -> None:
    """objectInfo150.txt; R is the class among the things, G the instance."""
    save(tmp_path / "images" / "training" / "a.jpg", PHOTO)
    save(tmp_path / "annotations" / "training" / "a.png", VALUES)
    instances = np.array([(0, 0, 0), (0, 0, 0), (1, 1, 0), (2, 1, 0)], np.uint8)[VALUES]
    instances[1, 0] = (1, 2, 0)
    save(tmp_path / "annotations_instance" / "training" / "a.png", instances)
    table = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.1\t1\t1\t1\tsky\n2\t.1\t1\t1\t0\tcat, kitty\n3\t.1\t1\t1\t0\tdog\n"
    )
    (tmp_path / "annotations" / "objectInfo150.txt").write_text(table)
    source = read(tmp_path / "annotations", tmp_path / "images", tmp_path / "annotations_instance")
    assert splits(source) == {"all": ["training/a.jpg"]}
    ids, segments, _ = run(source, tmp_path / "out")
    assert ids == [[0, 0, 1, 1], [3, 2, 1, 1], [2, 2, 4, 4]]
    assert segments == [("sky", 0), ("cat, kitty", 0), ("cat, kitty", 0), ("dog", 0)]


def test_a_map_of_instances_for_each_class(tmp_path: Path) -> None:
    """They may overlap, and what a class has besides them is a crowd."""
    save(tmp_path / "photos" / "a.jpg", PHOTO)
    save(tmp_path / "masks" / "a.png", VALUES)
    (tmp_path / "masks" / "classes.csv").write_text(TABLE)
    save(tmp_path / "instances" / "cat" / "a.png", np.array([[0] * 4, [1, 0, 0, 0], [1, 2, 2, 2]], np.uint8))
    save(tmp_path / "instances" / "dog" / "b.png", VALUES)  # another photo's
    source = read(tmp_path / "masks", tmp_path / "photos", tmp_path / "instances")
    ids, segments, made = run(source, tmp_path / "out")
    assert ids == [[0, 0, 1, 1], [3, 2, 1, 1], [3, 4, 4, 4]]
    assert segments == [("sky", 0), ("cat", 1), ("cat", 0), ("cat", 0)]
    assert made.lost == [f"a.jpg: {tmp_path}/masks/a.png: dog: covered whole"]


def test_photos_and_masks_in_one_folder(tmp_path: Path) -> None:
    """Roboflow's: a.jpg, a_mask.png, _classes.csv."""
    for name in "ab":
        save(tmp_path / f"{name}.jpg", PHOTO)
        save(tmp_path / f"{name}_mask.png", VALUES)
    save(tmp_path / "c.png", PHOTO)
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, sky\n2, cat\n3, dog\n")
    source = read(tmp_path, suffix="_mask")
    assert splits(source) == {"all": ["a.jpg", "b.jpg"]}
    assert any("1 photos without a mask are left out, as c.png" in each for each in source.remarks)
    assert run(source, tmp_path / "out")[1] == [("sky", 0), ("cat", 0), ("dog", 0)]


def test_photos_above_the_masks(tmp_path: Path) -> None:
    for folder in ("photos", "masks", "objects"):
        save(tmp_path / folder / f"a.{'png' if folder != 'photos' else 'jpg'}", VALUES if folder != "photos" else PHOTO)
    (tmp_path / "classes.csv").write_text(TABLE)
    source = read(tmp_path / "masks", Path(os.path.relpath(tmp_path)), tmp_path / "objects")
    assert (splits(source), source.faults) == ({"all": ["photos/a.jpg"]}, [])


def folders(tmp_path: Path, photos: list[str], masks: list[str]) -> tuple[Path, Path]:
    for name in photos:
        save(tmp_path / "photos" / name, PHOTO)
    for name in masks:
        save(tmp_path / "masks" / name, VALUES)
    (tmp_path / "masks").mkdir(exist_ok=True)
    (tmp_path / "masks" / "classes.csv").write_text(TABLE)
    return tmp_path / "masks", tmp_path / "photos"


def test_names_that_are_nearly_the_same(tmp_path: Path) -> None:
    """Another folder, another suffix, a.jpg.png, an accent in one sign or in two."""
    photos = ["x/a.jpg", "b.png", "e\u0301.jpg", "c.d.jpg"]
    masks, place = folders(tmp_path, photos, ["a.png", "b.bmp", "\u00e9.png", "y/c.d.jpg.png"])
    source = read(masks, place)
    assert source.faults == [] and sorted(splits(source)["all"]) == sorted(photos)


def test_a_jpeg_among_the_masks_is_a_fault(tmp_path: Path) -> None:
    masks, photos = folders(tmp_path, ["a.jpg", "b.jpg"], ["a_L.png", "b_L.jpg", "b_l.png", "v/a_L.jpg", "x.jpg"])
    said = "b_L.jpg: a JPEG changes the values at every edge; write the masks as PNG"
    for place in (photos, tmp_path):  # apart, and above the masks
        source = read(masks, place, suffix="_L")
        assert [item.name.removeprefix("photos/") for item in source.splits["all"]] == ["a.jpg", "b.jpg"]
        with pytest.raises(LabelFaults, match=f"a fault, .*{said}"):
            convert(source, tmp_path / "out", progress=False)
    assert f"3 images in {masks} are the mask of no photo, as b_l.png" in read(masks, photos, suffix="_L").remarks
    (masks / "a_L.png").rename(masks / "a.png")
    (masks / "b_L.jpg").rename(masks / "b.jpg")
    for name in ("b_l.png", "v/a_L.jpg", "x.jpg"):
        (masks / name).unlink()
    for place in (photos, tmp_path):
        with pytest.raises(LabelFaults, match=r"b.jpg: a JPEG changes the values"):
            convert(read(masks, place), tmp_path / "out", progress=False)


def test_photos_among_the_masks_are_no_masks(tmp_path: Path) -> None:
    masks, _ = folders(tmp_path, [], ["a.jpg", "a.png", "b.jpg"])
    source = read(masks, masks)
    assert (splits(source), source.faults) == ({"all": ["a.jpg"]}, [])
    assert "1 photos without a mask are left out, as b.jpg; paint a mask for each" in source.remarks
    assert not any("the mask of no photo" in each for each in source.remarks)


def test_masks_without_their_photo(tmp_path: Path) -> None:
    masks, photos = folders(tmp_path, ["a.jpg", "b.jpg", "b.png", "x/c.jpg", "y/c.jpg", "d.jpg"], [])
    for name in ("a.png", "a.tif", "b.png", "c.png", "lost.png", "z/d.png", "d.png"):
        save(masks / name, VALUES)
    with pytest.raises(InputError, match=r"a.png and a.tif are masks of one photo"):
        read(masks, photos)
    (masks / "a.tif").unlink()
    source = read(masks, photos)
    assert source.faults == [
        "b.png: it can be the mask of b.jpg and of b.png; name it after one alone",
        "c.png: it can be the mask of x/c.jpg and of y/c.jpg; name it after one alone",
        f"lost.png: no photo in {photos} is called lost.*",
        "z/d.png: d.png is a mask of the photo d.jpg too; remove one",
    ]
    with pytest.raises(LabelFaults, match="4 faults, nothing is written"):
        convert(source, tmp_path / "out", progress=False)
    (made,) = convert(source, tmp_path / "out", rules=Rules(partial=True), progress=False)
    assert len(PanopticFolder(made.split)) == 2


@pytest.mark.parametrize(
    ("photos", "masks", "fault"),
    [
        (["a.jpg"], ["a_L.png"], "a_L.png: no photo in .* is called a_L.*; if it is that of a: --suffix _L"),
        (["a.jpg"], ["a.jpg"], r"holds no mask \(\*.png, .*; a.jpg is none, as its kind changes values at every edge"),
        (["a.jpg"], [], r"holds no mask \(\*.png"),
    ],
)
def test_folders_without_a_pair(tmp_path: Path, photos: list[str], masks: list[str], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read(*folders(tmp_path, photos, masks))


def test_what_must_be_given(tmp_path: Path) -> None:
    masks, photos = folders(tmp_path, ["a.jpg"], ["a.png"])
    (masks / "classes.csv").unlink()
    for given, fault in (
        ((masks, None), "give the folder of the photos, --photos"),
        (
            (masks, photos),
            r"no table of classes is there .labelmap.txt, .*--classes: .*; a.png holds value 0, value 1, ",
        ),
        ((masks, tmp_path / "none"), "none.*no such folder"),
        ((tmp_path / "none", photos), "no such folder; give the one that holds the masks"),
        ((masks, photos, tmp_path / "none"), "no such folder; it should hold the masks of instances"),
    ):
        if given[1] == tmp_path / "none" or len(given) > 2:
            (masks / "classes.csv").write_text(TABLE)
        with pytest.raises(InputError, match=fault):
            read(*given)
        (masks / "classes.csv").unlink(missing_ok=True)
