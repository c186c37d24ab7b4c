"""The page: what it holds, that it is whole and safe, and its command."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.folders import find_folders
from tests.hand_made_dataset import IDS
from tests.upsnet.datasets.conversion.yolo_writer import write_yolo
from upsnet.command_line.command import make_app
from upsnet.datasets.conversion.yolo import main as from_yolo
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.page.command import main
from upsnet.datasets.page.page import Selection, number, share, write_page
from upsnet.datasets.shapes import write_shapes
from upsnet.datasets.split import Split
from upsnet.datasets.splitting.split import SplitRules, split_dataset
from upsnet.errors import InputError
from upsnet.files import write_json

HandMade = Callable[..., dict[str, Path]]
NO_END = {"meta", "link", "img", "input"}


class Reader(HTMLParser):
    """Every element has its end; the words outside of style and script, and each picture's card."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.cards: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in NO_END:
            self.open.append(tag)
        if tag == "article":
            self.cards.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def read(page: Path) -> tuple[str, Reader]:
    text, reader = page.read_text(), Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return " ".join(" ".join(reader.words).split()), reader


def pictures(page: Path) -> list[Image.Image]:
    found = re.findall(r'<img[^>]* src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def show(split: Split, out: Path, **selection: Any) -> tuple[str, Reader]:
    write_page(out, [check_split(split, 1, progress=False)], Selection(**selection), 1, progress=False)
    return read(out)


def test_a_sound_data_set(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    words, reader = show(Split(**hand_made(content)), tmp_path / "show.html")
    for said in (
        "4 / 4 classes in use",
        "6.2 % of the pixels are void",
        "0 errors",
        "Every image is shown.",
        "cat × 2 (1 crowd)",
        "image 42 · 8 × 6",
        "cat thing 2 1 18.8 % 1 2",  # segments, images, pixels, crowds, median size
        "sky stuff 1 1 37.5 % – 4",
        "small (under 32) 100.0 %",
    ):
        assert said in words, said
    assert "Findings" not in words
    assert [each["data-found"] for each in reader.cards] == ["0"]
    photo, overlay = pictures(tmp_path / "show.html")
    assert overlay.size == (320, 240)  # names can be read
    assert photo.size == (8, 6)


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", {"train": 6, "val": 5}, progress=False)
    checkups = [check_split(split, 1, progress=False) for split in find_folders(folder)]
    made = write_page(tmp_path / "show.html", checkups, Selection(limit=3), 1, progress=False)
    text = made.path.read_text()
    assert (made.shown, made.images, made.size) == (6, 11, made.path.stat().st_size)
    assert not re.search(r'(src|href|srcset)="(?!data:|#)', text) and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    words, reader = read(made.path)
    assert "3 of 6 images are shown." in words and "3 of 5 images are shown." in words
    assert "--limit 6 shows more." in words
    assert len({each["id"] for each in reader.cards}) == 6
    assert all(np.ptp(np.asarray(each)) > 30 for each in pictures(made.path))
    again = write_page(tmp_path / "again.html", checkups, Selection(limit=3), 1, progress=False)
    assert again.path.read_text() == text


def test_the_coco_photos(shared_data: Path, tmp_path: Path) -> None:
    (split,) = find_folders(shared_data / "coco_sample")
    words, reader = show(split, tmp_path / "show.html")
    assert "20 / 133 classes in use" in words and "person × 14 (1 crowd)" in words
    assert {each["id"] for each in reader.cards} == {f"s0-{id}" for id in (142238, 233771, 356387, 439180)}
    found = pictures(tmp_path / "show.html")
    assert sorted(each.size for each in found[::2]) == [(500, 335), (640, 360), (640, 427), (640, 640)]
    for photo, overlay in zip(found[::2], found[1::2], strict=True):
        differing = (np.abs(np.asarray(photo, int) - np.asarray(overlay, int)).max(2) > 30).mean()
        assert photo.size == overlay.size and differing > 0.5


def test_findings_stand_beside_their_picture(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    content["annotations"][0]["segments_info"][0]["area"] = 5
    content["annotations"][0]["segments_info"][1].pop("bbox")
    content["images"].append({"id": 1, "file_name": "gone.png", "height": 6, "width": 8})
    hand_made(content)
    words, reader = show(Split(**hand_made(content)), tmp_path / "show.html")
    beside = words[words.index("Every image is shown.") :]
    assert "image 42: segment 70000 has area 5; in the PNG 4; write this" in beside
    assert "image 42: segment 7 has no bbox" in beside
    assert "image 1 (gone.png) has no annotation" in beside and "No picture:" in beside
    assert words.index("area: area missing or not the PNG's") < words.index("bbox-missing: no bbox")
    assert {each["id"]: each["data-found"] for each in reader.cards} == {"s0-42": "2", "s0-1": "1"}
    words, reader = show(Split(**hand_made(content)), tmp_path / "show.html", limit=1)
    assert "Images with findings that are not shown: 1." in words and len(reader.cards) == 1


@pytest.mark.parametrize(
    ("ids", "trouble"),
    [
        (IDS[:3], "its segments are not drawn: photo and PNG differ in size"),
        (None, "it has no PNG of segments"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    hand_made: HandMade, content: dict[str, Any], tmp_path: Path, ids: np.ndarray | None, trouble: str
) -> None:
    paths = hand_made(content, IDS if ids is None else ids)
    if ids is None:
        (paths["segments"] / "a.png").unlink()
    words, _ = show(Split(**paths), tmp_path / "show.html")
    assert trouble in words and len(pictures(tmp_path / "show.html")) == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"images": [], "annotations": [], "categories": []}', "{}"])
def test_a_json_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    for name in ("set", "panoptic_set"):
        (tmp_path / name).mkdir()
    (tmp_path / "set.json").write_text(text)
    words, _ = show(Split.usual(tmp_path / "set.json"), tmp_path / "show.html")
    assert "error json: the JSON is not COCO panoptic" in re.sub(r" \d+ ", " ", words)
    assert "The JSON lists no image that can be shown." in words


def test_names_are_text_and_nothing_else(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    content["images"][0]["file_name"] = content["annotations"][0]["file_name"] = "b&\"'<b>.png"
    content["categories"][0]["name"] = "<script>alert('1')</script>"
    words, _ = show(Split(**hand_made(content, name="b&\"'<b>.png")), tmp_path / "show.html")
    assert "b&\"'<b>.png" in words and "<script>alert('1')</script>" in words
    assert (tmp_path / "show.html").read_text().count("<script") == 1


def test_only_images_of_a_category(tmp_path: Path) -> None:
    train = find_folders(write_shapes(tmp_path / "shapes", {"train": 9, "val": 1}, progress=False))[0]
    stars = {
        each.image_id
        for each in PanopticFolder(train).records
        if any(segment.category_id == 4 for segment in each.segments)
    }
    names = {each.id: each.name for each in PanopticFolder(train).categories}
    words, reader = show(train, tmp_path / "show.html", categories=[names[4]])
    assert {int((each["id"] or "").split("-")[1]) for each in reader.cards} == stars and 0 < len(stars) < 9
    assert f"Only images with {names[4]} (--category)." in words
    with pytest.raises(InputError, match=r"^--category sta: no such category; there is star$"):
        show(train, tmp_path / "other.html", categories=["sta"])
    assert not (tmp_path / "other.html").exists()


def test_only_findings(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    words, reader = show(Split(**hand_made(content)), tmp_path / "show.html", only_findings=True)
    assert "0 of 1 images are shown. Only images with findings" in words and not reader.cards
    content["annotations"][0]["segments_info"][0]["bbox"] = [0, 0, 1, 1]
    words, reader = show(Split(**hand_made(content)), tmp_path / "show.html", only_findings=True)
    assert "Every image is shown." in words and len(reader.cards) == 1


def test_the_command(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", {"train": 2, "val": 1}, progress=False)
    done = CliRunner().invoke(make_app(main), [str(folder), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert f"{folder}/show.html: 3 of 3 images, " in done.output and "0 errors, 0 warnings\n" in done.output
    assert "image/s" in done.output
    assert len(pictures(folder / "show.html")) == 6
    assert [each.json_file.stem for each in find_folders(folder)] == ["train", "val"]  # the page is in nobody's way
    done = CliRunner().invoke(make_app(main), [str(folder / "val.json"), "--out", str(tmp_path)])
    assert done.exit_code == 2 and f"{tmp_path}: cannot be written: a folder" in done.output
    done = CliRunner().invoke(make_app(main), [str(folder), "--category", "sta"])
    assert done.exit_code == 2 and "there is star" in done.output and "image/s" not in done.output  # before the check
    done = CliRunner().invoke(make_app(main), [str(tmp_path / "nothing")])
    assert done.exit_code == 2 and "nothing: no such file or folder" in done.output


def test_a_data_set_and_its_parts_are_shown_once(tmp_path: Path) -> None:
    whole = write_shapes(tmp_path / "data", {"train": 4}, progress=False) / "all.json"
    for old, new in (("train.json", "all.json"), ("train", "all"), ("panoptic_train", "panoptic_all")):
        (whole.parent / old).rename(whole.parent / new)
    split_dataset(whole, None, SplitRules(workers=1), progress=False)
    folder = whole.parent
    done = CliRunner().invoke(make_app(main), [str(folder), "--workers", "1"])
    assert done.exit_code == 0, done.output
    said = f"{whole}: left out, as train.json, val.json were split from it; `upsnet data show {whole}` shows it\n"
    assert said in done.output and f"{folder}/show.html: 4 of 4 images, " in done.output
    assert len(pictures(folder / "show.html")) == 8
    done = CliRunner().invoke(make_app(main), [str(whole), "--workers", "1"])
    assert "left out" not in done.output and f"{folder}/show.html: 4 of 4 images, " in done.output


def test_a_conversion_is_shown_from_what_it_saw(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", {"train": 3, "val": 1}, progress=False)
    write_yolo(PanopticFolder(folder / "train.json"), tmp_path / "yolo", split="train")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        make_app(from_yolo), [str(tmp_path / "yolo"), "--out", str(out), "--limit", "2", "--show", "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    assert f"{out}/show.html: 2 of 2 images" in done.output
    assert len(pictures(out / "show.html")) == 4


def test_what_a_conversion_left_out_is_said(hand_made: HandMade, content: dict[str, Any], tmp_path: Path) -> None:
    split = Split(**hand_made(content))
    write_json(tmp_path / "set_conversion.json", {"images_left_out": ["b.png: no such photo", "c.png"]})
    words, _ = show(split, tmp_path / "show.html")
    assert "Images that the conversion left out: 2, as b.png: no such photo;" in words


def test_figures() -> None:
    assert [share(value) for value in (0, 0.0004, 0.001, 0.1234, 1)] == [
        "0.0 %",
        "under 0.1 %",
        "0.1 %",
        "12.3 %",
        "100.0 %",
    ]
    assert number(1234567) == "1,234,567"
