"""Writing a data set: names, places, faults, what is never lost."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.folders import local
from upsnet.datasets.conversion.convert import LabelFaults, Rules, convert
from upsnet.datasets.conversion.labels import Bitmap, Item, LabelClass, Labels, LeftOut, Shape, Size, Source
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.conversion.summary import print_summary
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")


def left_half(photo_size: Size, size: Size | None = None, fault: str | None = None) -> Labels:
    if fault:
        raise InputError(fault)
    height, width = size or photo_size
    shape = Shape("cat", (Bitmap(np.ones((height, width // 2), bool)),), "shape 0")
    return Labels([shape], size, [LeftOut("point", "shape 1")])


def make_source(folder: Path, count: int = 2, **more: object) -> Source:
    items = []
    for index in range(count):
        photo = folder / f"{index}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 40 * index, np.uint8)).save(photo)
        items.append(Item(photo, f"{index}.jpg", left_half))
    return Source("toy", folder, [LabelClass("cat", "cat", 3)], {"all": items}, **more)  # type: ignore[arg-type]


def test_a_data_set_that_training_reads(tmp_path: Path) -> None:
    (made,) = convert(make_source(tmp_path / "photos"), tmp_path / "out", progress=False)
    assert not made.checkup.tally.errors and made.checkup.tally.images == 2
    assert (made.left_out, made.copied, made.contested, made.pixels) == ({"point": 2}, 0, 0, 48)
    data = PanopticFolder(tmp_path / "out" / "all.json")
    _, ids = data.read(data.records[1])
    assert ids.tolist() == [[1, 1, 1, 0, 0, 0]] * 4
    assert os.path.samefile(local(data.records[0].photo), tmp_path / "photos" / "0.jpg")
    report = json.loads((tmp_path / "out" / "all_conversion.json").read_text())
    assert report["classes"][0] == {
        **{"name": "cat", "kind": "thing", "shapes": 2, "segments": 2, "crowds": 0, "hidden": 0, "empty": 0},
        **{"boxes": 0, "pixels": 24, "covered": 0},
    }


def test_a_fault_writes_nothing_unless_partial(tmp_path: Path) -> None:
    source = make_source(tmp_path / "photos", 3, faults=["d.jpg: no labels; draw some"])
    items = source.splits["all"]
    items[1] = items[1]._replace(read=partial(left_half, fault="1.txt: line 3: no number"))
    with pytest.raises(LabelFaults, match=r"2 faults, nothing is written: d.jpg: .* .and 1 more"):
        convert(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (made,) = convert(source, tmp_path / "out", rules=Rules(partial=True), progress=False)
    assert made.checkup.tally.images == 2
    assert made.faults == ["d.jpg: no labels; draw some", "1.jpg: 1.txt: line 3: no number"]
    assert json.loads((tmp_path / "out" / "all_conversion.json").read_text())["images_left_out"] == made.faults


def test_what_is_there_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "photos"), tmp_path / "out"
    convert(source, out, rules=Rules(limit=1), progress=False)
    with pytest.raises(InputError, match=r"all\.json: is there already; give another --out, or --replace"):
        convert(source, out, progress=False)
    (made,) = convert(source, out, rules=Rules(replace=True), progress=False)
    assert len(PanopticFolder(made.split)) == 2
    content = json.loads(made.split.json_file.read_text())
    made.split.json_file.write_text(json.dumps(content | {"info": {}}))
    with pytest.raises(InputError, match="was not made by `upsnet data`"):
        convert(source, out, rules=Rules(replace=True), progress=False)
    assert (tmp_path / "photos" / "0.jpg").is_file()


def test_what_somebody_put_beside_the_photos_is_not_removed(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "photos"), tmp_path / "out"
    convert(source, out, progress=False)
    for folder in ("all", "panoptic_all"):
        (out / folder / "0.json").touch()
        with pytest.raises(InputError, match=rf"{folder}/0.json: --replace would remove this file"):
            convert(source, out, rules=Rules(replace=True), progress=False)
        (out / folder / "0.json").unlink()
    (out / "all" / "1.jpg").unlink()
    (made,) = convert(source, out, rules=Rules(replace=True), progress=False)
    assert made.checkup.tally.images == 2


def test_a_conversion_is_not_looked_through_for_photos(tmp_path: Path) -> None:
    convert(make_source(tmp_path), tmp_path, progress=False)
    assert PhotoFolder(tmp_path).names() == ["0.jpg", "1.jpg"]
    assert PhotoFolder(tmp_path / "all").names() == ["0.jpg", "1.jpg"]


def test_photos_that_differ_in_their_suffix_alone(tmp_path: Path) -> None:
    source = make_source(tmp_path / "photos", 1)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "photos" / "0.png")
    source.splits["all"].append(Item(tmp_path / "photos" / "0.png", "0.png", left_half))
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert not made.checkup.tally.errors
    assert sorted(os.listdir(made.split.images)) == ["0.jpg", "0_png.png"]


@pytest.mark.parametrize("name", ["../0.jpg", "/0.jpg", ""])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path / "photos", 1)
    source.splits["all"][0] = source.splits["all"][0]._replace(name=name)
    with pytest.raises(InputError, match="not a name inside"):
        convert(source, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("orientation", [1, 6, 8, 5, 7])
def test_labels_of_a_photo_that_exif_turns(tmp_path: Path, orientation: int) -> None:
    """Labels drawn on the photo as it is stored are turned with it; those drawn on the turned photo are not."""
    photo = tmp_path / "photos" / "0.jpg"
    photo.parent.mkdir()
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(photo, exif=exif, quality=95)
    item = Item(photo, "0.jpg", partial(left_half, size=(40, 64)))
    source = Source("toy", tmp_path, [LabelClass("cat", "cat", 3)], {"all": [item]})
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert made.turned == (orientation != 1) and not made.checkup.tally.errors
    data = PanopticFolder(made.split)
    seen, ids = data.read(data.records[0])
    assert ((seen[..., 0] > 127) == (ids == 1)).all()


def test_labels_of_another_size_are_a_fault(tmp_path: Path) -> None:
    source = make_source(tmp_path / "photos", 1)
    source.splits["all"][0] = source.splits["all"][0]._replace(read=partial(left_half, size=(8, 12)))
    with pytest.raises(LabelFaults, match="labels are for 12 x 8 pixels, the photo has 6 x 4"):
        convert(source, tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", ["a/b", "panoptic_x", ".x", "", "a\nb", "x" * 101])
def test_a_split_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        convert(make_source(tmp_path / "photos"), tmp_path / "out", rules=Rules(name=name), progress=False)


def test_names_that_no_line_holds(tmp_path: Path) -> None:
    source = make_source(tmp_path / "photos")
    source.splits["all"][0] = source.splits["all"][0]._replace(name="a\nb.jpg")
    with pytest.raises(LabelFaults, match=r"a fault, .* has a line break .*; rename the photo"):
        convert(source, tmp_path / "out", progress=False)
    source.classes[0] = source.classes[0]._replace(name="c\nat")
    with pytest.raises(InputError, match=r"the class 'c\\nat': its name has a line break"):
        convert(source, tmp_path / "out", progress=False)


def test_a_split_of_which_nothing_is_left(tmp_path: Path) -> None:
    source = make_source(tmp_path / "photos")
    source.splits = {"train": source.splits["all"], "val": [source.splits["all"][0]._replace(name="\n.jpg")]}
    with pytest.raises(LabelFaults, match=r"a fault, .*; of 'val' no image is left"):
        convert(source, tmp_path / "out", rules=Rules(partial=True), progress=False)
    source.splits["val"] = []
    with pytest.raises(InputError, match="the split 'val' holds no labelled image; take it out"):
        convert(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training needs train and val: what is said follows from what is there."""
    source, out = make_source(tmp_path / "photos"), tmp_path / "out"
    for name, said in (
        ("train", "the labels of val with --name val; or this once more with --name all"),
        ("val", "--data"),
    ):
        print_summary(source, convert(source, out, rules=Rules(name=name), progress=False))
        assert said in capsys.readouterr().out.splitlines()[-1]
    print_summary(source, convert(source, tmp_path / "other", progress=False))
    assert capsys.readouterr().out.splitlines()[-1].endswith("other for train and val")
