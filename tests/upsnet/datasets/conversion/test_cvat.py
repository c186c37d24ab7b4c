"""CVAT's XML -> shapes, and the four COCO photos there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.upsnet.datasets.conversion.cvat_writer import (
    attribute,
    document,
    element,
    image,
    label,
    mask,
    square,
    write_cvat,
)
from tests.upsnet.datasets.conversion.truth import Piece, Truth, check_comes_back, images
from upsnet.datasets.conversion.convert import ALL_THINGS, STRICT, Converted, LabelFaults, Rules, convert
from upsnet.datasets.conversion.cvat import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")


def add_photos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)


def write(folder: Path, *inside: str, names: tuple[str, ...] = ("a.png",), **more: object) -> Path:
    """An unpacked export."""
    add_photos(folder / "images", *names)
    (folder / "annotations.xml").write_text(document(*inside, **more), encoding="utf-8")  # type: ignore[arg-type]
    return folder


def one(
    folder: Path, *shapes: str, choice: Choice = ALL_THINGS, rules: Rules = STRICT, ungrouped: bool = False
) -> Converted:
    source = read(write(folder / "in", image("a.png", *shapes)), ungrouped=ungrouped)
    (made,) = convert(source, folder / "out", choice, rules, progress=False)
    return made


def ids(made: Converted, number: int = 0) -> np.ndarray:
    data = PanopticFolder(made.split)
    return data.read(data.records[number])[1]


def expected(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """6 x 8, with (number, left, top, right, bottom) painted in this order."""
    canvas = np.zeros((6, 8), int)
    for number, x1, y1, x2, y2 in boxes:
        canvas[y1:y2, x1:x2] = number
    return canvas


def test_polygons_and_the_order_of_the_layers(tmp_path: Path) -> None:
    made = one(
        tmp_path,
        square("cat", 0, 0, 4, 4, z_order=1),
        square("dog", 2, 2, 6, 6),
        square("dog", 3, 3, 8, 5, z_order="-1"),
    )
    # numbered by layer, and within a layer as the file has them
    assert (ids(made) == expected((1, 3, 3, 8, 5), (2, 2, 2, 6, 6), (3, 0, 0, 4, 4))).all()
    assert made.overlap == "later" and made.contested == 4 + 6 - 1
    assert [(each.id, each.name, each.color) for each in made.table.categories] == [
        (1, "cat", (10, 11, 12)),
        (2, "dog", (255, 0, 0)),
    ]


def test_masks(tmp_path: Path) -> None:
    made = one(tmp_path, mask("cat", np.array([[1, 1, 0], [0, 1, 1]]), 5, 4), mask("dog", np.ones((2, 1)), 0, 0))
    assert (ids(made) == expected((1, 5, 4, 7, 5), (1, 6, 5, 8, 6), (2, 0, 0, 1, 2))).all()


def test_an_ellipse_holds_the_pixels_whose_middle_it_holds(tmp_path: Path) -> None:
    flat = element("ellipse", label="cat", cx="4.00", cy="3.00", rx="3.00", ry="1.00", z_order=0)
    made = one(tmp_path, flat)
    assert (ids(made) == expected((1, 1, 2, 7, 4))).all()  # (2.5 / 3)^2 + 0.5^2 < 1
    upright = element("ellipse", label="cat", cx="4.00", cy="3.00", rx="3.00", ry="1.00", rotation="90.00", z_order=0)
    assert (ids(one(tmp_path / "turned", upright)) == expected((1, 3, 0, 5, 6))).all()


def test_an_ellipse_turns_clockwise(tmp_path: Path) -> None:
    shape = element("ellipse", label="cat", cx="4.00", cy="3.00", rx="3.50", ry="0.70", rotation="45.00", z_order=0)
    found = ids(one(tmp_path, shape))
    assert found[1, 2] == found[4, 5] == 1 and found[1, 5] == found[4, 2] == 0


def test_boxes(tmp_path: Path) -> None:
    flat = element("box", label="cat", xtl="1.00", ytl="1.00", xbr="4.00", ybr="3.00", z_order=0)
    with pytest.raises(LabelFaults, match=r"a.png: annotations.xml: line \d+ \(cat\): a box, which has no outline"):
        one(tmp_path, flat)
    turned = element("box", label="dog", xtl="5.00", ytl="1.00", xbr="7.00", ybr="5.00", rotation="90.00", z_order=0)
    made = one(tmp_path, flat, turned, rules=Rules(boxes="fill"))
    assert (ids(made) == expected((1, 1, 1, 4, 3), (2, 4, 2, 8, 4))).all()


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_an_attribute_makes_a_crowd(tmp_path: Path, value: str) -> None:
    crowd = mask("cat", np.ones((2, 2)), 0, 0, attribute("age", "7"), attribute("is_crowd", value))
    made = one(tmp_path, crowd, mask("cat", np.ones((2, 2)), 4, 0, attribute("is_crowd", "false")))
    assert (made.counts["cat"].segments, made.counts["cat"].crowds) == (2, 1)


def test_groups_are_one_object_a_label(tmp_path: Path) -> None:
    shapes = [
        square("cat", 0, 0, 2, 2, group_id=3),
        square("cat", 4, 0, 6, 2, group_id=3),
        square("dog", 0, 4, 2, 6, group_id=3),
        square("cat", 4, 4, 6, 6, group_id=0),
        square("cat", 7, 4, 8, 6),
    ]
    joined = expected((1, 0, 0, 2, 2), (1, 4, 0, 6, 2), (2, 0, 4, 2, 6), (3, 4, 4, 6, 6), (4, 7, 4, 8, 6))
    assert (ids(one(tmp_path, *shapes)) == joined).all()
    assert one(tmp_path / "each", *shapes, ungrouped=True).counts["cat"].segments == 4


def test_what_holds_no_pixels_is_counted(tmp_path: Path) -> None:
    inner = element("points", label="nose", outside=0, occluded=0, points="1.00,1.00")
    made = one(
        tmp_path,
        square("cat", 0, 0, 2, 2),
        element("polyline", label="cat", points="0.00,0.00;1.00,1.00", z_order=0),
        element("points", label="cat", points="0.00,0.00;1.00,1.00", z_order=0),
        element("cuboid", label="cat", xtl1="0.00", z_order=0),
        element("skeleton", inner, label="body", z_order=0),
        element("tag", label="cat"),
    )
    assert made.left_out == {"polyline": 1, "points": 1, "cuboid": 1, "skeleton": 1, "tag": 1}
    assert made.counts["cat"].segments == 1


def test_labels_without_pixels_are_no_classes(tmp_path: Path) -> None:
    labels = [
        label("body", "#111111", "skeleton"),
        label("nose", "#111112", "points", more="<parent>body</parent>"),
        label("cat & dog", "#0a0b0c", "polygon"),
        label("Straße", "#0a0b0c", "tag"),
        label("sunny", "#0a0b0d", "tag"),
        label("background", "#000000"),
    ]
    shapes = [square("cat & dog", 0, 0, 2, 2), square("Straße", 2, 2, 4, 4), square("background", 4, 4, 6, 6)]
    source = read(write(tmp_path / "in", image("a.png", *shapes), labels=labels))
    assert source.remarks == ["2 labels are of a type that holds no pixels, and no classes, as 'body' (skeleton)"]
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert [each.name for each in made.table.categories] == ["cat & dog", "Straße"]
    assert len({each.color for each in made.table.categories}) == 2  # the labels share one
    assert (ids(made) == expected((1, 0, 0, 2, 2), (2, 2, 2, 4, 4))).all()


def test_a_file_without_labels(tmp_path: Path) -> None:
    shapes = [square("dog", 0, 0, 2, 2), square("cat", 2, 2, 4, 4), element("tag", label="sunny")]
    file = write(tmp_path, image("a.png", *shapes)) / "annotations.xml"
    text = file.read_text()
    file.write_text(text[: text.index("<meta>")] + text[text.index("</meta>") + len("</meta>") :])
    assert [each.name for each in read(file).classes] == ["cat", "dog"]
    file.write_text("<annotations><image name='a.png'><tag label='sunny'/></image></annotations>")
    with pytest.raises(InputError, match="no label of it has shapes with pixels"):
        read(file)


def test_images_without_shapes(tmp_path: Path) -> None:
    names = ("a.png", "b.png", "c.png", "d.png")
    tagged = image("c.png", element("tag", label="cat"))
    export = write(
        tmp_path / "in", image("a.png", square("cat", 0, 0, 2, 2)), image("b.png"), "<image name='d.png'/>", tagged,
        names=(*names, "e.png"),
    )  # fmt: skip
    source = read(export)
    assert [item.name for item in source.splits["all"]] == ["a.png", "c.png"]
    assert source.remarks == [
        "2 photos have no shape and are left out (--unlabelled: they show no object), as b.png",
        "1 photos are not in the XML and are left out, as e.png",
    ]
    (made,) = convert(read(export, unlabelled=True), tmp_path / "out", progress=False)
    assert made.checkup.tally.images == 4 and not made.checkup.tally.errors


def test_the_subsets_of_a_project_are_splits(tmp_path: Path) -> None:
    shape = square("cat", 0, 0, 2, 2)
    export = write(
        tmp_path / "in",
        image("a.png", shape, subset="Train", task_id=1),
        image("x/a.png", shape, subset="Train", task_id=2),
        image("a.png", shape, subset="Validation", task_id=3),
        image("b.png", shape, subset="night", task_id=4),
        names=("Train/a.png", "Train/x/a.png", "Validation/a.png", "night/b.png"),
    )
    source = read(export)
    found = {split: [item.name for item in items] for split, items in source.splits.items()}
    assert found == {"train": ["a.png", "x/a.png"], "val": ["a.png"], "night": ["b.png"]}
    assert source.splits["val"][0].photo == export / "images" / "Validation" / "a.png"
    assert len(convert(source, tmp_path / "out", progress=False)) == 3
    write(export, image("a.png", shape, subset="val"), image("a.png", shape, subset="Validation"))
    with pytest.raises(InputError, match="the subsets val and Validation are both val; give them one name in CVAT"):
        read(export)
    write(export, image("a.png", shape, subset="default"), names=("default/a.png",))
    assert [item.name for item in read(export).splits["all"]] == ["a.png"]


def test_photos_that_do_not_fit(tmp_path: Path) -> None:
    shape = square("cat", 0, 0, 2, 2)
    lines = [image("a.png", shape), image("../../b.png", shape), image("c.png", shape), image("c.png", shape)]
    add_photos(tmp_path, "b.png", "d.png")  # outside of the export
    lines += [image("", shape), image(str(tmp_path / "d.png"), shape)]
    source = read(write(tmp_path / "in", *lines, names=("a.png", "c.png")))
    assert [item.name for item in source.splits["all"]] == ["a.png"]
    b, empty, d, c, _ = source.faults
    assert b.startswith("line 14: its photo '../../b.png' is not in") and b.endswith("as --photos")
    assert "its photo '' is not in" in empty and "d.png' is not in" in d
    assert c == "line 18: c.png: another <image> is of the same photo; give the tasks' photos names of their own"


def test_labels_of_another_photo_and_of_a_stored_one(tmp_path: Path) -> None:
    shape = square("cat", 0, 0, 2, 3)
    source = read(write(tmp_path / "in", image("a.png", shape, width=9)))
    with pytest.raises(LabelFaults, match="the labels are for 9 x 6 pixels, the photo has 8 x 6"):
        convert(source, tmp_path / "out", progress=False)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.new("RGB", (8, 6)).save(tmp_path / "in/images/a.png", exif=exif)
    (made,) = convert(read(write_again(tmp_path / "in", shape)), tmp_path / "out", progress=False)
    turned = np.zeros((8, 6), int)
    turned[0:2, 3:6] = 1
    assert made.turned == 1 and (ids(made) == turned).all()


def write_again(export: Path, *shapes: str) -> Path:
    (export / "annotations.xml").write_text(document(image("a.png", *shapes)))
    return export


def track(name: str, *shapes: str, **more: object) -> str:
    return element("track", *shapes, id=5, label=name, source="manual", **more)


def framed(frame: int, x: int, outside: int = 0, keyframe: int = 1) -> str:
    points = f"{x}.00,0.00;{x + 2}.00,0.00;{x + 2}.00,2.00;{x}.00,2.00"
    given = {"frame": frame, "keyframe": keyframe, "outside": outside, "occluded": 0, "points": points}
    return element("polygon", attribute("is_crowd", "false"), **given, z_order=0)


SIZE = "<original_size><width>8</width><height>6</height></original_size>"


def test_the_tracks_of_a_video(tmp_path: Path) -> None:
    export = write(
        tmp_path / "in",
        track("cat", framed(0, 0), framed(5, 1, keyframe=0), framed(10, 2), framed(15, 2, outside=1)),
        track("dog", framed(5, 6), framed(10, 6, outside=1), group_id=1),
        track("dog", framed(5, 4), framed(10, 6, outside=1), group_id=1),
        names=("frame_000000.PNG", "frame_000005.PNG", "frame_000010.PNG", "frame_000015.PNG"),
        more_meta=SIZE,
    )
    source = read(export)
    assert source.remarks == [
        "1 photos have no shape and are left out (--unlabelled: they show no object), as frame_000015.PNG"
    ]
    (made,) = convert(source, tmp_path / "out", progress=False)
    assert (ids(made, 0) == expected((1, 0, 0, 2, 2))).all()
    assert (ids(made, 1) == expected((1, 1, 0, 3, 2), (2, 4, 0, 8, 2))).all()
    assert (ids(made, 2) == expected((1, 2, 0, 4, 2))).all()


def test_tracks_that_leave_frames_out(tmp_path: Path) -> None:
    names = tuple(f"frame_{number:06d}.png" for number in (0, 3, 6))
    source = read(write(tmp_path, track("cat", framed(0, 0), framed(6, 1), framed(9, 2)), names=names))
    assert [item.name for item in source.splits["all"]] == [names[0], names[2]]
    gap, gone = source.faults
    assert gap.startswith("frame_000003.png: track 5 (line 14) has shapes before and after it, and none on it; export")
    assert "line 17: frame_000009 is not in" in gone


def test_tracks_whose_photos_are_not_told(tmp_path: Path) -> None:
    export = write(tmp_path, track("cat", framed(0, 0)))
    with pytest.raises(InputError, match=r"no photo is called frame_000000, .* in .*; export it as 'CVAT for images"):
        read(export)
    write(tmp_path, track("cat", framed(0, 0), task_id=1), track("cat", framed(0, 0), task_id=2))
    with pytest.raises(InputError, match="has the tracks of several tasks"):
        read(export)


def test_a_videos_frames_for_images_have_no_suffix(tmp_path: Path) -> None:
    export = write(tmp_path, image("frame_000000", square("cat", 0, 0, 2, 2)), names=("frame_000000.png",))
    assert [item.name for item in read(export).splits["all"]] == ["frame_000000.png"]


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        (square("cow", 0, 0, 1, 1), r"\(cow\): <meta> has no label 'cow'; there are cat, dog"),
        (element("polygon", points="0,0"), r"\(polygon\): <meta> has no label None"),
        (element("polygon", label="cat"), "'points' is None, not x,y"),
        (element("polygon", label="cat", points="1.00,2.00;3.00"), "'points' is '1.00,2.00;3.00', not x,y;x,y"),
        (element("polygon", label="cat", points="a,b"), "'points' is 'a,b'"),
        (element("polygon", label="cat", points="nan,1;2,3;4,5"), "a point is not a finite number"),
        (element("polygon", label="cat", points="0,0;1,1;0,1e9"), "far outside the photo of 8 x 6"),
        (square("cat", 0, 0, 1, 1, z_order="top"), "'z_order' is 'top', not a number"),
        (element("box", label="cat", xtl="1"), "'ytl' is None, not a number"),
        (element("box", label="cat", xtl="0", ytl="0", xbr="1e308", ybr="1", rotation="9"), "far outside"),
        (element("ellipse", label="cat", cx="1e9", cy="0", rx="1", ry="1"), "far outside"),
        (mask("cat", np.ones((2, 9)), 0, 0), r"box \(left 0, top 0, width 9, height 2\) does not fit a photo of 8 x 6"),
        (mask("cat", np.ones((2, 2)), 10**6, 0), "far outside"),
        (element("mask", label="cat", rle="0, 9", left=0, top=0, width=2, height=2), "'rle' is of 9 pixels, .* 2 x 2"),
        (element("mask", label="cat", rle="-4, 8", left=0, top=0, width=2, height=2), "'rle' is of 4 pixels"),
        (element("mask", label="cat", rle="a", left=0, top=0, width=2, height=2), "'rle' is 'a', not lengths"),
        (element("mask", label="cat", rle="4", left="0.5", top=0, width=2, height=2), "left 0.5, top 0, .* not fit"),
    ],
)
def test_shapes_that_cannot_be_read(tmp_path: Path, shape: str, fault: str) -> None:
    with pytest.raises(LabelFaults, match=rf"a.png: annotations.xml: line 13.*({fault})"):
        one(tmp_path, square("cat", 0, 0, 1, 1), shape)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no element found"),
        (b"<annotations><image>", "line 1: no element found; the file ends too early"),
        (b"<annotations>\n<image></annotations>", "line 2: mismatched tag"),
        (b"\xef\xbb\xbf<annotations/>", "has neither <image> nor <track>; export it as"),
        (b"<annotation><object/></annotation>", "<annotation> is no CVAT XML, which begins with <annotations>"),
        ("<annotations/>".encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        (
            b'<?xml version="1.0" encoding="iso-8859-1"?><annotations/>',
            "the encoding is 'iso-8859-1'; save it in UTF-8",
        ),
        (b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotations>&d;</annotations>', "has a DOCTYPE"),
        (b"<annotations><image/><track label='a'/></annotations>", "has <image>s and <track>s"),
        (b"<annotations><track><box frame='x'/></track></annotations>", "the frame is 'x', not a whole number"),
        (b"\xff\xd8\xff", "not well-formed"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes, fault: str) -> None:
    file = tmp_path / "annotations.xml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read(file)


def test_folders_that_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no annotations.xml; export it as 'CVAT for images 1.1'"):
        read(tmp_path)
    (tmp_path / "job.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="unpack the export, and give its folder"):
        read(tmp_path / "job.zip")
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(InputError, match="is no XML; `upsnet data from-instances` reads CVAT's COCO export"):
        read(tmp_path / "coco.json")
    write(tmp_path / "tasks" / "1", image("a.png"))
    with pytest.raises(InputError, match=r"has exports in its folders, as .*1/annotations.xml; give one of them, or"):
        read(tmp_path / "tasks")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_default.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"is CVAT's COCO export; `upsnet data from-instances .*default.json` reads it"
    ):
        read(tmp_path)
    write(tmp_path, image("a.png", square("cat", 0, 0, 1, 1)))
    (tmp_path / "annotations.xml").rename(tmp_path / "1.xml")
    assert len(read(tmp_path).splits["all"]) == 1
    (tmp_path / "2.xml").write_text("")
    with pytest.raises(InputError, match=r"holds several XMLs \(1.xml, 2.xml, ...\); give one of them"):
        read(tmp_path)


def test_the_coco_photos_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    truth = Truth(shared_data)
    write_cvat(truth.data, tmp_path / "in")
    check_comes_back(read(tmp_path / "in"), truth, tmp_path / "out")


def test_polygons_lose_the_holes_alone(shared_data: Path, tmp_path: Path) -> None:
    truth = Truth(shared_data)
    write_cvat(truth.data, tmp_path / "in", "polygon", only="233771")
    stuff = [each.name for each in truth.data.categories if not each.isthing]
    rules = Rules(overlap="smaller")  # what shows through a hole is mostly smaller than what has it
    (made,) = convert(read(tmp_path / "in"), tmp_path / "out", Choice(stuff=stuff), rules, progress=False)
    found = PanopticFolder(made.split)
    (own,) = (record for record in truth.data.records if record.photo.name == found.records[0].photo.name)
    differs = colors(found, found.records[0]) != colors(truth.data, own)
    (pieces,) = (pieces for photo, pieces in images(truth.data) if photo == own.photo)
    assert differs.any() and not (differs & ~holes(pieces)).any()


def holes(pieces: list[Piece]) -> np.ndarray:
    """Pixels in a hole of any piece."""
    canvas = np.zeros(pieces[0].mask.shape, bool)
    for piece in pieces:
        (place,) = ndimage.find_objects(piece.mask.astype(np.uint8))
        canvas[place] |= ndimage.binary_fill_holes(piece.mask[place]) & ~piece.mask[place]
    return canvas


def colors(data: PanopticFolder, record: object) -> np.ndarray:
    """Each pixel's category, as the place of its name; 0: void."""
    _, numbers = data.read(record)  # type: ignore[arg-type]
    names = sorted(each.name for each in data.categories)
    by_id = {each.id: names.index(each.name) + 1 for each in data.categories}
    canvas = np.zeros(numbers.shape, int)
    for segment in record.segments:  # type: ignore[attr-defined]
        canvas[numbers == segment.id] = by_id[segment.category_id]
    return canvas
