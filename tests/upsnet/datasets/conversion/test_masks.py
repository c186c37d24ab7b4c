"""Masks -> panoptic: the COCO photos come back as they are, and small masks worked out by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.datasets.conversion.mask_writer import Kind, write_masks
from tests.upsnet.datasets.conversion.truth import Truth, pixels
from upsnet.datasets.conversion.convert import ALL_THINGS, Converted, LabelFaults, Rules, convert
from upsnet.datasets.conversion.labels import Source
from upsnet.datasets.conversion.masks import read
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

VALUES = np.array([[0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 3, 3]], np.uint8)  # nothing, sky, cat, dog
TABLE = "value,name,isthing\n1,sky,0\n2,cat,1\n3,dog,1\n"
COLORS = {0: (0, 0, 0), 1: (70, 130, 180), 2: (255, 7, 9), 3: (8, 8, 8)}
COLOR_TABLE = "name,isthing,r,g,b\nsky,0,70,130,180\ncat,1,255,7,9\ndog,1,8,8,8\n"


@pytest.mark.parametrize("kind", ["grey", "palette", "colors"])
def test_the_same_panoptic_truth_comes_back(shared_data: Path, tmp_path: Path, kind: Kind) -> None:
    truth = Truth(shared_data)
    write_masks(truth.json_file, tmp_path, kind)
    (made,) = convert(read(tmp_path / "classes", tmp_path / "photos", tmp_path / "instances"), tmp_path / "out")
    assert not made.checkup.tally.errors and (made.contested, made.lost) == (0, [])
    back = PanopticFolder(made.split)
    assert back.categories == truth.data.categories
    assert [each.color for each in back.categories] == [each.color for each in truth.data.categories]
    assert pixels(back) == pixels(truth.data)


def save(path: Path, pixels: object, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path)
    return path


def colored(values: np.ndarray = VALUES) -> np.ndarray:
    return np.array([COLORS[value] for value in range(4)], np.uint8)[values]


def make(folder: Path, table: str = TABLE, mask: object = VALUES, instances: object = None, **more: Any) -> Source:
    """One photo, a.jpg, and its masks."""
    save(folder / "photos" / "a.jpg", np.zeros((*VALUES.shape, 3), np.uint8))
    (folder / "masks").mkdir(exist_ok=True)
    if mask is not None:
        save(folder / "masks" / "a.png", mask)
    (folder / "classes.csv").write_text(table)
    if instances is not None:
        save(folder / "instances" / "a.png", instances)
        more["instances"] = folder / "instances"
    return read(folder / "masks", folder / "photos", classes=folder / "classes.csv", **more)


def run(
    source: Source, out: Path, choice: Choice = ALL_THINGS
) -> tuple[list[list[int]], list[tuple[str, int]], Converted]:
    """The map of the first photo; its segments, category and whether they are a crowd."""
    (made,) = convert(source, out, choice, Rules(replace=True), progress=False)
    assert not made.checkup.tally.errors
    data = PanopticFolder(made.split)
    names = {each.id: each.name for each in data.categories}
    segments = [(names[each.category_id], int(each.iscrowd)) for each in data.records[0].segments]
    return data.read(data.records[0])[1].tolist(), segments, made


def narrow_png(path: Path, depth: int) -> None:
    """VALUES as a grey PNG of 2 or 4 bits, which Pillow does not write."""
    rows = b""
    for row in VALUES.tolist():
        bits = "".join(f"{value:0{depth}b}" for value in row)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", VALUES.shape[1], VALUES.shape[0], depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))


EXPECTED = [[0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 3, 3]]
WRITERS = {
    "grey 16.png": lambda path: save(path, VALUES.astype(np.uint16)),
    "grey 2.png": lambda path: narrow_png(path, 2),
    "grey 4.png": lambda path: narrow_png(path, 4),
    "grey.tif": lambda path: save(path, VALUES),
    "grey 32.tiff": lambda path: save(path, VALUES.astype(np.int32)),
    "grey.bmp": lambda path: save(path, VALUES),
    "as colours.png": lambda path: save(path, VALUES, "RGB"),
    "with opacity.png": lambda path: save(path, VALUES, "LA"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_values_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks").mkdir()
    WRITERS[name](tmp_path / "masks" / f"a{Path(name).suffix}")
    ids, segments, _ = run(make(tmp_path, mask=None), tmp_path / "out")
    assert ids == EXPECTED and segments == [("sky", 0), ("cat", 1), ("dog", 1)]


def test_colours_are_read_in_every_way(tmp_path: Path) -> None:
    rgb = colored()
    transparent = np.dstack([rgb, np.where(VALUES == 0, 0, 255).astype(np.uint8)])
    transparent[VALUES == 0, :3] = 77  # what is transparent may have any colour
    palette = Image.fromarray(3 - VALUES)  # indices in another order
    palette.putpalette([channel for value in (3, 2, 1, 0) for channel in COLORS[value]])
    palette.save(tmp_path / "palette.png")
    for number, mask in enumerate((rgb, transparent)):
        assert run(make(tmp_path, COLOR_TABLE, mask), tmp_path / f"{number}")[0] == EXPECTED
    source = make(tmp_path, COLOR_TABLE)
    (tmp_path / "palette.png").rename(tmp_path / "masks" / "a.png")
    assert run(source, tmp_path / "palette")[0] == EXPECTED


def test_a_binary_mask(tmp_path: Path) -> None:
    """0 and 255: 255 is a class where the table has it, and void where not."""
    mask = np.where(VALUES > 1, 255, 0).astype(np.uint8)
    source = make(tmp_path, "value,name\n0,background\n255,tumour\n", mask)
    expected = [[0] * 4, [1, 1, 0, 0], [1] * 4]
    assert run(source, tmp_path / "out")[:2] == (expected, [("tumour", 0)])
    assert any("'background' are void" in each for each in source.remarks)
    ids, segments, _ = run(source, tmp_path / "out", Choice(background="background"))
    assert (ids[0], segments) == ([1] * 4, [("background", 0), ("tumour", 0)])
    save(tmp_path / "masks" / "a.png", mask > 0)  # of one bit: 0 and 1
    ids, segments, _ = run(make(tmp_path, "value,name\n1,tumour\n", None), tmp_path / "out", Choice(background="rest"))
    assert (ids, segments) == ([[1 + (value == 0) for value in row] for row in expected], [("tumour", 0), ("rest", 0)])


def test_instances(tmp_path: Path) -> None:
    """One number in two classes is two instances, a thing without number is a crowd, stuff has no instances."""
    numbers = np.array([[9, 0, 5, 6], [300, 300, 5, 6], [300, 0, 300, 300]], np.uint16)
    ids, segments, made = run(make(tmp_path, instances=numbers), tmp_path / "out")
    assert ids == [[0, 0, 1, 1], [3, 3, 1, 1], [3, 2, 4, 4]]
    assert segments == [("sky", 0), ("cat", 1), ("cat", 0), ("dog", 0)]
    assert made.left_out == {"instance without a class": 1}  # 9
    assert made.lost == []


def test_numbers_of_instances_in_colours_and_palettes(tmp_path: Path) -> None:
    expected = [("sky", 0), ("cat", 0), ("dog", 0)]
    colors = np.array([(0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 0, 200)], np.uint8)
    assert run(make(tmp_path, instances=colors[VALUES]), tmp_path / "colors")[1] == expected
    image = Image.fromarray(3 - VALUES)  # black is index 3
    image.putpalette([*(0, 0, 200), *(1, 0, 0), *(0, 0, 0), *(0, 0, 0)])
    assert run(make(tmp_path, instances=image), tmp_path / "palette")[1] == expected


def test_connected_pieces(tmp_path: Path) -> None:
    mask = np.array([[1, 0, 2, 0], [0, 1, 0, 0], [2, 0, 1, 2]], np.uint8)
    ids, segments, _ = run(make(tmp_path, "value,name\n1,cat\n2,dog\n", mask, pieces=True), tmp_path / "out")
    assert ids == [[1, 0, 2, 0], [0, 1, 0, 0], [3, 0, 1, 4]]
    assert segments == [("cat", 0), ("dog", 0), ("dog", 0), ("dog", 0)]
    with pytest.raises(InputError, match=r"--pieces: the instances are those of .*; leave out one"):
        make(tmp_path, instances=VALUES, pieces=True)


def test_classes_without_a_kind_are_stuff_or_with_instances_things(tmp_path: Path) -> None:
    for numbers, kind in ((None, False), (VALUES, True)):
        source = make(tmp_path, "value,name\n1,sky\n2,cat\n3,dog\n", instances=numbers)
        assert [each.isthing for each in source.classes if not each.void] == [kind] * 3
    source = make(tmp_path)
    assert any("without --instances or --pieces those of one class are a crowd" in each for each in source.remarks)


BLENDED = np.dstack([colored(), np.full(VALUES.shape, 128, np.uint8)])


@pytest.mark.parametrize(
    ("table", "mask", "fault"),
    [
        (
            TABLE,
            np.where(VALUES == 3, np.uint8(7), VALUES),
            r"value 7 is of no class in .*csv: 2 pixels, the first at x 2, y 2; .* --ignore 7",
        ),
        (COLOR_TABLE, colored() + 1, r"colour 1,1,1 is of no class in .*, y 0 .and 3 more values.; .* --ignore 1,1,1"),
        (TABLE, colored(), "holds colours, and .*classes.csv has none; add the columns r, g, b"),
        (COLOR_TABLE, BLENDED, "half transparent"),
        (TABLE, VALUES.astype(np.float32), "kind F"),
        (TABLE, VALUES.T, r"the labels are for 3 x 4 pixels, the photo has 4 x 3 \(width x height\)"),
        (TABLE, np.tile(VALUES, (9, 9)), r"the labels are for 36 x 27 pixels"),
    ],
)
def test_masks_that_cannot_be_read(tmp_path: Path, table: str, mask: np.ndarray, fault: str) -> None:
    save(tmp_path / "masks" / ("a.png" if mask.dtype == np.uint8 else "a.tif"), mask)
    source = make(tmp_path, table, None)
    with pytest.raises(LabelFaults, match=fault):
        convert(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_is_no_png(tmp_path: Path) -> None:
    source = make(tmp_path)
    mask = tmp_path / "masks" / "a.png"
    whole = mask.read_bytes()
    save(tmp_path / "a.jpg", VALUES).rename(mask)
    for content, fault in (
        (mask.read_bytes(), "a JPEG changes the values at every edge; write the masks as PNG"),
        (whole[:-30], "not a readable image"),
        (b"", "not a readable image"),
    ):
        mask.write_bytes(content)
        with pytest.raises(LabelFaults, match=rf"a\.png: {fault}"):
            convert(source, tmp_path / "out", progress=False)


def test_a_blurred_mask_is_called_so(tmp_path: Path) -> None:
    photo = save(tmp_path / "photos" / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    (tmp_path / "masks" / "classes.csv").write_text(COLOR_TABLE)
    source = read(tmp_path / "masks", photo.parent)
    with pytest.raises(LabelFaults, match=r"and 63 more values.; so many come of JPEG or of resizing"):
        convert(source, tmp_path / "out", progress=False)


def test_masks_of_instances_that_do_not_fit(tmp_path: Path) -> None:
    source = make(tmp_path, instances=VALUES)
    save(tmp_path / "instances" / "a.png", VALUES[:2])
    with pytest.raises(LabelFaults, match=r"instances/a.png: is of 4 x 2 pixels .*, the mask of classes 4 x 3"):
        convert(source, tmp_path / "out", progress=False)
    (tmp_path / "instances" / "a.png").unlink()
    with pytest.raises(LabelFaults, match=r"instances/a.png: no such file"):
        convert(source, tmp_path / "out", progress=False)


def test_a_photo_is_no_map_of_instances(tmp_path: Path) -> None:
    photo = save(
        tmp_path / "photos" / "a.png",
        np.arange(3 * 200 * 200, dtype=np.uint32).view(np.uint8).reshape(200, -1, 4)[:, :200, :3],
    )
    save(tmp_path / "masks" / "a.png", np.ones((200, 200), np.uint8))
    (tmp_path / "masks" / "classes.csv").write_text(TABLE)
    with pytest.raises(LabelFaults, match="holds 40000 instances, as a photo does; the most is 32767"):
        convert(read(tmp_path / "masks", photo.parent, photo.parent), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("table", "ignore", "fault"),
    [
        ("value,name\n1,cat\n1,dog\n", None, "value 1 is of 'cat' and of 'dog'; give each its own"),
        ("name,r,g,b\ncat,1,2,3\ndog,1,2,3\n", None, "colour 1,2,3 is of 'cat' and of 'dog'"),
        ("name,isthing\ncat,1\n", None, "has neither values nor colours"),
        (TABLE, ["1"], "value 1 is of 'sky' and of '--ignore 1'"),
        (TABLE, ["red"], "--ignore red: give a value, as 255, or a colour"),
    ],
)
def test_tables_that_do_not_tell_masks_apart(tmp_path: Path, table: str, ignore: list[str] | None, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        make(tmp_path, table, ignore=ignore)


def test_values_that_are_ignored_stay_void(tmp_path: Path) -> None:
    source = make(tmp_path, TABLE.replace("3,dog,1\n", ""), ignore=["3"])
    ids, segments, _ = run(source, tmp_path / "out", Choice(background="rest"))
    assert (ids[2], segments[-1]) == ([2, 2, 0, 0], ("rest", 0)) and ids[0][0] == 3


def test_rows_of_one_name_are_one_class(tmp_path: Path) -> None:
    ids, segments, _ = run(make(tmp_path, TABLE.replace("dog,1", "sky,0")), tmp_path / "out")
    assert (ids[2], segments) == ([2, 2, 1, 1], [("sky", 0), ("cat", 1)])


def test_a_palette_that_contradicts_the_values(tmp_path: Path) -> None:
    table = "value,name,r,g,b\n1,sky,70,130,180\n2,cat,255,7,9\n3,dog,8,8,8\n"
    source = make(tmp_path, table)
    image = Image.fromarray(VALUES)
    for order, fault in (
        ((0, 1, 2, 3), None),
        ((0, 2, 1, 3), "index 1 of its palette is 'sky' by value, and 'cat' by its"),
    ):
        image.putpalette([channel for value in order for channel in COLORS[value]])
        image.save(tmp_path / "masks" / "a.png")
        if fault is None:
            assert run(source, tmp_path / "out")[0] == EXPECTED
        else:
            with pytest.raises(LabelFaults, match=fault):
                convert(source, tmp_path / "other", progress=False)
