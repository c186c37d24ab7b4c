from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upsnet.results import result_of
from upsnet import draw
from upsnet.categories import Categories
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.photos import read_photo
from upsnet.result import PanopticResult, Segment

TABLE = Categories.from_coco(
    [
        {"id": 1, "name": "circle", "isthing": 1, "color": [200, 40, 40]},
        {"id": 2, "name": "sky", "isthing": 0, "color": [40, 90, 200]},
    ]
)
SKY, CIRCLE = 0, 1


@pytest.fixture
def spied_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels that overlay draws."""
    texts: list[str] = []
    original = draw.ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        texts.append(text)
        original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "text", text)
    return texts


def test_colours_of_segments() -> None:
    segments = [Segment(id, c, 1.0, 1, (0, 0, 1, 1)) for id, c in ((70_000, CIRCLE), (2, CIRCLE), (1, SKY))]
    colors = draw.segment_colors(segments, TABLE)
    assert colors[2] == TABLE[SKY].color
    assert colors[0] == TABLE[CIRCLE].color  # the first instance; the second has a shade of its own
    assert len({(0, 0, 0), *colors}) == 4


def test_instances_of_a_class_get_different_colours() -> None:
    assert len(set(draw.segment_colors([Segment(1, CIRCLE, 1.0, 1, (0, 0, 1, 1))] * 30, TABLE))) >= 29


def test_overlay_colours_segments_names_them_and_leaves_void_alone(spied_texts: list[str]) -> None:
    ids = np.zeros((600, 800), np.int32)
    ids[:200] = 1
    ids[300:500, 300:600] = 2
    photo = np.full((600, 800, 3), 100, np.uint8)
    picture = overlay(photo, result_of(ids, {1: SKY, 2: CIRCLE}), TABLE)
    assert spied_texts == ["sky", "circle 0.90"]
    assert picture.shape == photo.shape and picture.dtype == np.uint8
    assert (picture[550:, :] == 100).all()
    assert picture[10, 10].tolist() == [(100 + channel) // 2 for channel in TABLE[SKY].color]
    assert picture[490, 310].tolist() == [(100 + channel) // 2 for channel in TABLE[CIRCLE].color]
    assert (picture[300, 300:600] == 255).all()  # outline
    assert (photo == 100).all()


def test_small_photos_are_enlarged_until_text_is_legible(spied_texts: list[str]) -> None:
    ids = np.ones((96, 128), np.int32)
    ids[40:60, 40:80] = 2
    picture = overlay(np.zeros((96, 128, 3), np.uint8), result_of(ids, {1: SKY, 2: CIRCLE}), TABLE)
    assert picture.shape == (288, 384, 3)
    assert sorted(spied_texts) == ["circle 0.90", "sky"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 40), (513, 2)])
def test_any_shape_runs(shape: tuple[int, ...]) -> None:
    picture = overlay(np.zeros((*shape, 3), np.uint8), result_of(np.ones(shape, np.int32), {1: CIRCLE}), TABLE)
    factor = picture.shape[0] // shape[0]
    assert picture.shape == (shape[0] * factor, shape[1] * factor, 3)


def test_no_segment_leaves_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (520, 520, 3), dtype=np.uint8)
    empty = PanopticResult(np.zeros((520, 520), np.int32), [])
    assert np.array_equal(overlay(photo, empty, TABLE), photo)


def test_labels_never_cover_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Any] = []
    original = draw.ImageDraw.ImageDraw.rounded_rectangle

    def rounded_rectangle(self: Any, xy: Any, *args: Any, **kwargs: Any) -> None:
        boxes.append(xy)
        original(self, xy, *args, **kwargs)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "rounded_rectangle", rounded_rectangle)
    ids = np.arange(1, 101, dtype=np.int32).reshape(10, 10).repeat(60, 0).repeat(60, 1)
    overlay(np.zeros((600, 600, 3), np.uint8), result_of(ids, dict.fromkeys(range(1, 101), CIRCLE)), TABLE)
    covered = np.zeros((600, 600), int)
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right < 600 and bottom < 600
        covered[top : bottom + 1, left : right + 1] += 1
    assert len(boxes) > 30 and covered.max() == 1


@pytest.mark.parametrize(
    "photo", [np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8)]
)
def test_photo_and_result_must_agree(photo: Any) -> None:
    with pytest.raises(InputError, match="result's size"):
        overlay(photo, PanopticResult(np.zeros((4, 5), np.int32), []), TABLE)


def test_real_ground_truth(shared_data: Path, spied_texts: list[str]) -> None:
    folder = shared_data / "coco_sample"
    document = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    table = Categories.from_coco(document["categories"])
    for annotation in document["annotations"]:
        ids = read_panoptic_png(folder / "annotations" / "panoptic_val2017" / annotation["file_name"])
        photo = read_photo(folder / "val2017" / annotation["file_name"].replace(".png", ".jpg"))
        segments = [
            Segment(info["id"], table.index_of_id(info["category_id"]), 1.0, info["area"], tuple(info["bbox"]))
            for info in annotation["segments_info"]
        ]
        spied_texts.clear()
        picture = overlay(photo, PanopticResult(ids, segments), table)
        assert picture.shape == photo.shape
        assert len(spied_texts) > len(segments) / 2


def test_a_line_break_in_a_name_is_a_space(spied_texts: list[str]) -> None:
    table = Categories.from_coco([{"id": 2, "name": "sky\n at day", "isthing": 0}])
    result = PanopticResult(np.ones((200, 400), np.int32), [Segment(1, 0, 1, 80_000, (0, 0, 400, 200))])
    overlay(np.zeros((200, 400, 3), np.uint8), result, table)
    assert spied_texts == ["sky at day"]
