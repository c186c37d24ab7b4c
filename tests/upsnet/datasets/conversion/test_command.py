"""`upsnet data from-...`: what all converters share, as somebody at a terminal sees it."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.upsnet.datasets.conversion.cvat_writer import document, element, image, square
from upsnet.command_line.main import COMMANDS, make_root
from upsnet.datasets.conversion import command

pytest.importorskip("hotcoco", reason="painting needs hotcoco")

CONVERTERS = [name.removeprefix("data ") for name in COMMANDS if name.startswith("data from-")]
COMMON = (
    *(
        "out",
        "classes",
        "stuff",
        "things",
        "void",
        "background",
        "overlap",
        "boxes",
        "name",
        "limit",
        "show",
        "partial",
    ),
    *("replace", "copy", "workers"),
)


class Ended(NamedTuple):
    code: int
    output: str  # of both
    errors: str


def upsnet_data(*words: object) -> Ended:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(make_root(), ["data", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.output, result.stderr)


def refused(*words: object) -> str:
    """The line that it ends with."""
    ended = upsnet_data(*words)
    assert ended.code == 2
    line = ended.errors.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


GOOD = square("cat", 1, 1, 5, 5)
BAD = square("cow", 0, 0, 1, 1)


def export(folder: Path, *shapes: str) -> Path:
    """CVAT's, with a photo for each shape: 0.png, 1.png, ..."""
    (folder / "images").mkdir(parents=True)
    for number in range(len(shapes)):
        Image.new("RGB", (8, 6), (number % 256, 0, 0)).save(folder / "images" / f"{number}.png")
    images = [image(f"{number}.png", shape) for number, shape in enumerate(shapes)]
    (folder / "annotations.xml").write_text(document(*images))
    return folder


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_has_the_same_options(name: str) -> None:
    ended = upsnet_data(name, "--help")
    assert ended.code == 0 and "COCO panoptic" in ended.output
    assert [option for option in COMMON if f"--{option} " not in ended.output] == []
    assert "Missing option '--out'" in upsnet_data(name, "somewhere").errors


@pytest.mark.parametrize("name", CONVERTERS)
def test_labels_that_are_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    needs = {"from-masks": ["--photos", tmp_path / "empty"], "from-instances": ["--photos", tmp_path / "empty"]}
    for path in (tmp_path / "none", tmp_path / "empty"):
        ended = upsnet_data(name, path, *needs.get(name, []), "--out", tmp_path / "out")
        assert ended.code == 2 and ended.errors.count("\n") == 1 and ended.errors.startswith("error: "), ended
    assert not (tmp_path / "out").exists()


def test_the_first_images_to_look_at(tmp_path: Path) -> None:
    folder = export(tmp_path / "in", *[GOOD] * 3)
    ended = upsnet_data("from-cvat", folder, "--out", tmp_path / "out", "--limit", 2, "--show", "--workers", 1)
    assert ended.code == 0
    assert "0 pixels (0.00 %) are claimed by several shapes" in ended.output
    assert "2 images, 2 segments of things" in ended.output and "0 errors" in ended.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["all", "all.json", "all_conversion.json", "panoptic_all", "show.html"]
    assert "0.png" in (tmp_path / "out/show.html").read_text()
    (row,) = (line.split() for line in ended.output.splitlines() if line.strip().startswith("cat "))
    assert row == ["cat", "thing", "2", "2", "0", "0", "0", "33.33", "0"]  # 4 x 4 of 8 x 6 pixels


def test_one_bad_image_and_nothing_is_written(tmp_path: Path) -> None:
    folder = export(tmp_path / "in", GOOD, BAD, GOOD, BAD)
    ended = upsnet_data("from-cvat", folder, "--out", tmp_path / "out")
    fault = "annotations.xml: line 15 (cow): <meta> has no label 'cow'; there are cat, dog"
    assert ended.code == 2 and not (tmp_path / "out").exists()
    lines = [line for line in ended.errors.splitlines() if "image/s" not in line and line.strip()]
    assert lines[0] == f"  1.png: {fault}" and lines[1].startswith("  3.png: ")
    assert lines[2].startswith("error: ") and "2 faults, nothing is written" in lines[2]
    assert lines[2].endswith("mend it, or leave such images out with --partial")

    ended = upsnet_data("from-cvat", folder, "--out", tmp_path / "out", "--partial")
    assert ended.code == 0 and f"2 images are left out:\n  1.png: {fault}\n" in ended.output
    report = json.loads((tmp_path / "out/all_conversion.json").read_text())
    assert report["images"] == 2 and report["images_left_out"][0] == f"1.png: {fault}"
    assert report["classes"][0] | {"pixels": 32, "segments": 2} == report["classes"][0]


def test_images_of_which_none_can_be_converted(tmp_path: Path) -> None:
    folder = export(tmp_path / "in", *[BAD] * 52)
    ended = upsnet_data("from-cvat", folder, "--out", tmp_path / "out", "--partial", "--workers", 1)
    assert ended.code == 2 and "  and 2 more" in ended.errors and not (tmp_path / "out").exists()
    assert "52 faults, nothing is written" in ended.errors


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    line = element("polyline", label="cat", points="0.00,0.00;1.00,1.00", z_order=0)
    box = element("box", label="dog", xtl=0, ytl=0, xbr=2, ybr=2, z_order=0)
    shapes = [GOOD + line, square("dog", 20, 20, 22, 22) + GOOD, box]
    folder = export(tmp_path / "in", *shapes)
    Image.new("RGB", (8, 6)).save(folder / "images" / "free.png")
    ended = upsnet_data("from-cvat", folder, "--out", tmp_path / "out", "--boxes", "skip")
    assert ended.code == 0
    for text in (
        "1 shapes hold no pixels and are left out: polyline",
        "2 shapes became no segment:",
        "holds no pixel",
        "a box, left out",
        "1 photos are not in the XML and are left out, as free.png",
    ):
        assert text in ended.output


def test_an_earlier_conversion(tmp_path: Path) -> None:
    folder, out = export(tmp_path / "in", GOOD), tmp_path / "out"
    assert upsnet_data("from-cvat", folder, "--out", out, "--name", "train").code == 0
    before = (out / "train.json").read_bytes()
    again = ("from-cvat", folder, "--out", out, "--name", "train", "--stuff", "cat")
    assert refused(*again).endswith("train.json: is there already; give another --out, or --replace")
    assert (out / "train.json").read_bytes() == before
    (out / "show.html").write_text("the earlier one's")
    assert upsnet_data(*again, "--replace").code == 0
    assert "the earlier one's" not in (out / "show.html").read_text()  # of what is no longer there
    assert [each["isthing"] for each in json.loads((out / "train.json").read_text())["categories"]] == [0, 1]


def test_photos_are_links_unless_copied(tmp_path: Path) -> None:
    folder = export(tmp_path / "in", GOOD)
    assert "1 hard links" in upsnet_data("from-cvat", folder, "--out", tmp_path / "a").output
    assert "0 hard links, which take no room, 1 copies" in (
        upsnet_data("from-cvat", folder, "--out", tmp_path / "b", "--copy").output
    )
    ours = [os.stat(path / "all/0.png").st_ino for path in (tmp_path / "a", tmp_path / "b")]
    theirs = os.stat(folder / "images/0.png").st_ino
    assert ours[0] == theirs != ours[1]


def test_classes_by_their_names(tmp_path: Path) -> None:
    folder, out = export(tmp_path / "in", GOOD + square("dog", 0, 0, 1, 1)), tmp_path / "out"
    words = ("from-cvat", folder, "--out", out)
    assert refused(*words, "--stuff", "cta").endswith("--stuff cta: no class has this name; did you mean 'cat'?")
    assert "'cat' is among --things and --stuff" in refused(*words, "--things", "cat", "--stuff", "cat", "dog")
    assert "no class is left: all are void" in refused(*words, "--void", "cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert "lacks the class 'dog' of the labels" in refused(*words, "--classes", tmp_path / "classes.txt")
    assert upsnet_data(*words, "--stuff", "dog", "--void", "cat", "--background", "floor").code == 0
    content = json.loads((out / "all.json").read_text())
    assert [(each["name"], each["isthing"]) for each in content["categories"]] == [("dog", 0), ("floor", 0)]
    areas = sorted(each["area"] for each in content["annotations"][0]["segments_info"])
    assert areas == [1, 48 - 1 - 16]  # the cat is void


def test_a_background_without_a_pixel(tmp_path: Path) -> None:
    """CVAT's masks hold a class `background`, which is void unless somebody says otherwise."""
    for folder, color in (("photos", 9), ("masks", 0)):
        (tmp_path / folder).mkdir()
        picture = Image.new("L", (8, 6), color)
        picture.paste(color or 1, (0, 0, 4, 4))
        picture.save(tmp_path / folder / "a.png")
    (tmp_path / "masks/classes.csv").write_text("value,name\n0,background\n1,cat\n")
    words = ("from-masks", tmp_path / "masks", "--photos", tmp_path / "photos", "--replace", "--out", tmp_path / "out")
    said = upsnet_data(*words, "--background", "rest").output
    assert "no pixel is left for the background 'rest'; pixels of 'background' are void" in said
    assert "no shape is of" not in said
    assert "no pixel is left" not in upsnet_data(*words, "--background", "background").output


@pytest.mark.parametrize("words", [("--limit", "0"), ("--boxes", "guess"), ("--overlap", "x"), ("--workers", "0")])
def test_values_that_an_option_does_not_take(tmp_path: Path, words: tuple[str, str]) -> None:
    ended = upsnet_data("from-cvat", export(tmp_path / "in", GOOD), "--out", tmp_path / "out", *words)
    assert ended.code == 2 and words[0] in ended.errors and not (tmp_path / "out").exists()


def test_names_of_splits(tmp_path: Path) -> None:
    words = ("from-cvat", export(tmp_path / "in", GOOD), "--out", tmp_path / "out", "--name")
    said = "--name ../all: give a file's name without folder and suffix, as train, of at most 100 bytes"
    assert refused(*words, "../all") == said
    assert upsnet_data(*words, "val").code == 0 and (tmp_path / "out/val.json").is_file()


@pytest.mark.parametrize("package", command.PACKAGES)
def test_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    line = refused("from-cvat", export(tmp_path / "in", GOOD), "--out", tmp_path / "out")
    assert line == f"the converters need the package {package}: pip install 'upsnet-trt[data]'"
