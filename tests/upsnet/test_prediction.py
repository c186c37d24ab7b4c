"""What a prediction offers, against what the fake predictor saw in the photo."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import SIZES, photo_of, scene
from tests.upsnet.results import result_of
from upsnet.categories import Categories
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError
from upsnet.model import Model
from upsnet.prediction import PanopticPrediction, PredictedSegment, save_coco

TABLE = Categories.from_coco(
    [
        {"id": 7, "name": "cat", "isthing": 1},
        {"id": 90, "name": "sky", "isthing": 0},
        {"id": 8, "name": "dog", "isthing": 1},
    ]
)
SKY, CAT, DOG = range(3)


def prediction_of(ids: np.ndarray, categories: dict[int, int], name: str = "photo") -> PanopticPrediction:
    photo = np.full((*ids.shape, 3), 90, np.uint8)
    return PanopticPrediction(result_of(ids, categories, 0.75), TABLE, photo, f"{name}.jpg", name)


@pytest.fixture
def small() -> PanopticPrediction:
    return prediction_of(np.array([[1, 1, 0], [2, 3, 3]], np.int32), {1: SKY, 2: CAT, 3: CAT})


def test_by_hand(small: PanopticPrediction) -> None:
    assert small.segments == (
        PredictedSegment(1, 90, "sky", False, 0.75, 2, (0, 0, 2, 1)),
        PredictedSegment(2, 7, "cat", True, 0.75, 1, (0, 1, 1, 1)),
        PredictedSegment(3, 7, "cat", True, 0.75, 2, (1, 1, 2, 1)),
    )
    assert small.mask(small.segments[2]).tolist() == [[False, False, False], [False, True, True]]
    assert small.mask(1).dtype == bool and small.mask(np.int32(1)).sum() == 2  # type: ignore[arg-type]
    assert small.describe() == "2 cat, sky"
    assert repr(small) == "<PanopticPrediction of photo.jpg, 2 x 3: 2 cat, sky>"


@pytest.mark.parametrize("id", [0, 4, -1, "cat"])
def test_a_mask_of_no_segment_is_refused(small: PanopticPrediction, id: Any) -> None:
    with pytest.raises(InputError, match=rf"photo\.jpg: no segment has the id {id!r}"):
        small.mask(id)


def test_description_counts_things_and_puts_them_first() -> None:
    prediction = prediction_of(np.array([[1, 2, 3, 4]], np.int32), {1: SKY, 2: DOG, 3: CAT, 4: DOG})
    assert prediction.describe() == "1 cat, 2 dog, sky"
    assert prediction_of(np.zeros((1, 1), np.int32), {}).describe() == "nothing found"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_any_map(tmp_path_factory: Any, height: int, width: int, most: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, most + 1, (height, width), dtype=np.int32)
    prediction = prediction_of(ids, {int(id): int(id) % 3 for id in np.unique(ids) if id})
    masks = [prediction.mask(segment) for segment in prediction.segments]
    assert np.array_equal(sum(masks, ids == 0), np.ones_like(ids)), "void and the masks cover the photo once"
    for segment, mask in zip(prediction.segments, masks, strict=True):
        x, y, w, h = segment.box
        assert mask.sum() == segment.area == mask[y : y + h, x : x + w].sum()
    folder = tmp_path_factory.mktemp("any")
    prediction.save_coco(folder)
    assert np.array_equal(read_panoptic_png(folder / "predictions" / "photo.png"), ids)
    written = json.loads(json.dumps(prediction.to_dict()))
    assert (written["height"], written["width"]) == ids.shape
    assert [PredictedSegment(**{**each, "box": tuple(each["box"])}) for each in written["segments"]] == list(
        prediction.segments
    )


def test_overlay_and_notebook(fake: Callable[..., Any]) -> None:
    with Model(fake("x")) as model:
        for index, (height, width) in enumerate(SIZES):
            prediction = model.predict(photo_of(scene(index)))
            picture = prediction.overlay()
            assert picture.mode == "RGB" and picture.width * height == picture.height * width
            with Image.open(io.BytesIO(prediction._repr_png_())) as shown:
                assert shown.format == "PNG" and np.array_equal(np.asarray(shown), np.asarray(picture))
            assert not np.array_equal(np.asarray(prediction.overlay(scores=False)), np.asarray(picture))


def test_saving_one_by_one_and_together_is_the_same(fake: Callable[..., Any], tmp_path: Path) -> None:
    with Model(fake("x")) as model:
        predictions = model.predict([photo_of(scene(index)) for index in range(3)])
        save_coco((each for each in predictions), tmp_path / "together")
    for each in (*predictions, predictions[1]):  # the second one twice
        each.save_coco(tmp_path / "one by one")
    contents = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("together", "one by one")]
    assert contents[0]["categories"] == contents[1]["categories"] == model.categories.to_coco()
    by_id = [sorted(content["annotations"], key=lambda entry: entry["image_id"]) for content in contents]
    assert by_id[0] == by_id[1] and [entry["image_id"] for entry in by_id[0]] == [1, 2, 3]
    for entry in by_id[0]:
        together, alone = (
            read_panoptic_png(tmp_path / name / "predictions" / entry["file_name"])
            for name in ("together", "one by one")
        )
        assert np.array_equal(together, alone)


def test_what_cannot_be_saved_together(small: PanopticPrediction, tmp_path: Path, fake: Callable[..., Any]) -> None:
    other = Model(fake("x")).predict(photo_of(scene(0)))
    for predictions, message in (
        ([], "there are no predictions"),
        ([small, small], "photo.png was already written"),
        ([small, other], "its categories are not those of photo.jpg"),
    ):
        with pytest.raises(InputError, match=message):
            save_coco(predictions, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_one_prediction_instead_of_many(small: PanopticPrediction, tmp_path: Path) -> None:
    save_coco(small, tmp_path)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["photo.png"]


def test_a_name_with_dots(tmp_path: Path) -> None:
    prediction_of(np.ones((1, 1), np.int32), {1: SKY}, "sub/v1.2").save_coco(tmp_path)
    assert (tmp_path / "predictions" / "sub" / "v1.2.png").is_file()


def test_supervision_detections(small: PanopticPrediction) -> None:
    supervision = pytest.importorskip("supervision", reason="needs the package supervision")
    detections = small.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 3
    assert detections.xyxy.tolist() == [[0, 0, 2, 1], [0, 1, 1, 2], [1, 1, 3, 2]]
    assert np.array_equal(detections.mask, [small.mask(segment) for segment in small.segments])
    assert detections.class_id.tolist() == [90, 7, 7] and detections.confidence.tolist() == [0.75] * 3
    things = detections[detections.data["isthing"]]
    assert things.data["class_name"].tolist() == ["cat", "cat"] and things.data["segment_id"].tolist() == [2, 3]
    assert things.area.tolist() == [1, 2] and things.metadata == {"source": "photo.jpg"}
    nothing = prediction_of(np.zeros((4, 5), np.int32), {}).to_supervision()
    assert len(nothing) == 0 and np.asarray(nothing.mask).shape == (0, 4, 5)


def test_without_supervision(small: PanopticPrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"to_supervision needs a package .*pip install supervision"):
        small.to_supervision()
