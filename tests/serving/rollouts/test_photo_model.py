"""The gate's look at a photo model: each way to be wrong in one output, or in the order of photos, is a reason."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.load_test.questions import Answer
from serving.rollouts.photo_model import PhotoAnswers, judge_photo_model
from tests.conftest import CAT, DOG, GRASS, SKY, FakePredictor
from upsnet.contract import (
    COCO_PNG,
    LABELS,
    LABELS16,
    OVERLAY,
    PHOTO_OUTPUTS,
    PHOTO_SIZES,
    SEGMENTS_JSON,
    STAGES_JSON,
)
from upsnet.photo_tensors import photo_tensors
from upsnet.photos import encode_image, read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.predictor import predict_photos

ASKED = (LABELS, PHOTO_SIZES, SEGMENTS_JSON)


def photo(left: tuple[int, int], right: tuple[int, int], height: int, width: int) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    for columns, (category, instance) in ((slice(0, width // 2), left), (slice(width // 2, width), right)):
        pixels[:, columns, :2] = 60 * (category + 1) + 5, 100 * (instance + 1) + 5
    return encode_image(Image.fromarray(pixels), "PNG")


PHOTOS = [("a.png", photo(SKY, DOG, 48, 60)), ("b.png", photo(CAT, GRASS, 40, 64))]


def answer(network: FakePredictor, places: range, outputs: Any) -> Answer:
    """As the photo model makes it of the network's answers."""
    read = [read_photo(PHOTOS[place][1]) for place in places]
    table = network.manifest.categories_table
    results = [
        PanopticPrediction(result, table, pixels, "x", "x", {"decode": 0.1})
        for result, pixels in zip(predict_photos(network, read), read, strict=True)
    ]
    tensors = photo_tensors(results, outputs)
    return {
        name: column(tensor[:, 0].tolist()) if tensor.dtype == object else tensor.tobytes()
        for name, tensor in tensors.items()
    }


def column(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def segments(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Of the answer to one photo, its first segment changed."""

    def changed(content: bytes) -> bytes:
        told = json.loads(content[4:])
        change(told[0])
        return column([json.dumps(told).encode()])

    return changed


@pytest.fixture
def network(fake: Callable[..., FakePredictor]) -> FakePredictor:
    return fake("network")


def judged(network: FakePredictor, damage: Callable[[dict[str, list[Answer]]], object] = lambda _: None) -> list[str]:
    found = {
        "alone": [answer(network, range(place, place + 1), ASKED) for place in range(2)],
        "whole": [answer(network, range(place, place + 1), PHOTO_OUTPUTS) for place in range(2)],
        "together": [answer(network, range(2), ASKED)],
    }
    damage(found)
    answers = PhotoAnswers(found["alone"], found["whole"], {range(2): found["together"][0]})
    return judge_photo_model(network, PHOTOS, answers)


def test_what_is_right_has_no_reason_against_it(network: FakePredictor) -> None:
    assert judged(network) == []


PNG = encode_image(Image.new("RGB", (64, 40)), "PNG")


@pytest.mark.parametrize(
    ("output", "change", "words"),
    [
        (COCO_PNG, lambda _: column([b"junk"]), "its output coco_png is wrong: cannot identify image file"),
        (COCO_PNG, lambda _: column([PNG]), "its output coco_png is wrong: it has other pixels than labels"),
        (COCO_PNG, lambda _: b"", "its output coco_png is wrong: "),
        (OVERLAY, lambda _: column([b"junk"]), "its output overlay is wrong: cannot identify image file"),
        (OVERLAY, lambda content: column([content[4:200]]), "its output overlay is wrong: "),
        (OVERLAY, lambda _: column([PNG[:-30]]), "its output overlay is wrong: "),
        (OVERLAY, lambda _: column([encode_image(Image.new("RGB", (40, 64)), "JPEG")]), "a picture of 40 x 64 pixels"),
        (LABELS16, lambda content: bytes(len(content)), "its output labels16 is wrong: it has other pixels"),
        (LABELS16, lambda content: content[2:], "its output labels16 is wrong: cannot reshape"),
        (STAGES_JSON, lambda _: column([b"{"]), "its output stages_json is wrong: "),
        (STAGES_JSON, lambda _: column([b'{"decode": -1}']), "stages_json is wrong: -1 seconds of decode"),
        (STAGES_JSON, lambda _: column([b"[]"]), "its output stages_json is wrong: "),
        (PHOTO_SIZES, lambda _: np.array([64, 40], np.int32).tobytes(), "is wrong: "),
        (LABELS, lambda content: content[1:], "the server's answer is none to a photo: cannot reshape"),
        (
            SEGMENTS_JSON,
            segments(lambda each: each.update(name="star")),
            r"calls category 200 'star' \(stuff\), the class table 'grass' \(stuff\)",
        ),
        (
            SEGMENTS_JSON,
            segments(lambda each: each.update(isthing=True)),
            r"200 'grass' \(thing\), the class table 'grass' \(stuff\)",
        ),
        (SEGMENTS_JSON, segments(lambda each: each.update(area=1)), "area or box of segment . are not those in labels"),
        (SEGMENTS_JSON, segments(lambda each: each.update(box=[0, 0, 1, 1])), "area or box of segment"),
        (SEGMENTS_JSON, segments(lambda each: each.update(score=float("nan"))), "the score of segment . is nan"),
        (SEGMENTS_JSON, segments(lambda each: each.update(id=9)), "it has other segments than labels"),
        (SEGMENTS_JSON, segments(lambda each: each.update(category_id=999)), "category id 999 is not in the table"),
        (SEGMENTS_JSON, segments(lambda each: each.pop("name")), "its output segments_json is wrong: 'name'"),
        (SEGMENTS_JSON, lambda content: content[:-1], "ends 1 bytes early"),
    ],
)
def test_each_output_is_looked_at(
    output: str, change: Callable[[bytes], bytes], words: str, network: FakePredictor
) -> None:
    def damage(found: dict[str, list[Answer]]) -> None:
        found["whole"][1][output] = change(found["whole"][1][output])

    (reason,) = judged(network, damage)
    assert reason.startswith("as a photo, 2 of 2 (b.png): ")
    assert re.search(words, reason), reason


def test_photos_in_one_request_keep_their_order(network: FakePredictor) -> None:
    def swap(found: dict[str, list[Answer]]) -> None:
        (both,) = found["together"]
        found["together"][0] = answer(network, range(1, -1, -1), ASKED)
        assert found["together"][0] != both

    (reason,) = judged(network, swap)
    assert reason.startswith("its photo model's answers agree in 0.000 % of the pixels of 2 photos when several are ")


def test_answers_hold_whatever_is_asked_for(network: FakePredictor, fake: Callable[..., FakePredictor]) -> None:
    other = fake("other", damage=((48, 60), 0.25))

    def damage(found: dict[str, list[Answer]]) -> None:
        found["whole"][0] = answer(other, range(1), PHOTO_OUTPUTS)

    (reason,) = judged(network, damage)
    assert reason == (
        "its photo model's answers agree in 87.500 % of the pixels of 2 photos when it is asked for all outputs, "
        "needed 98 %: least of a.png (75.000 %)"
    )


def test_scores_are_the_networks(network: FakePredictor) -> None:
    lower = segments(lambda each: each.update(score=0.3))

    def damage(found: dict[str, list[Answer]]) -> None:
        for name in ("alone", "whole"):
            found[name][0][SEGMENTS_JSON] = lower(found[name][0][SEGMENTS_JSON])

    (reason,) = judged(network, damage)
    assert reason.startswith("as a photo, 1 of 2 (a.png): the score of segment ")
    assert reason.endswith(" is 0.3, and should be 0.9")
