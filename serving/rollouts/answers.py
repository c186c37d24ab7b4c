"""What PHOTO_MODEL answers, as results whose pixels can be compared; and whether its outputs say the same."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from serving.load_test.questions import Answer
from upsnet.categories import Categories
from upsnet.contract import COCO_PNG, LABELS, LABELS16, OVERLAY, PHOTO_SIZES, SEGMENTS_JSON, STAGES_JSON
from upsnet.datasets.coco_format import rgb2id
from upsnet.errors import InputError, first_line
from upsnet.photos import DECODE_ERRORS
from upsnet.result import PanopticResult, Segment
from upsnet.run_lengths import areas_and_boxes


def result_of(answer: Answer) -> PanopticResult:
    """Of one photo. The categories are the data set's ids, not contiguous. InputError where it is no such answer."""
    (result,) = results_of(answer, 1)
    return result


def results_of(answer: Answer, photos: int) -> list[PanopticResult]:
    """Of a request of so many photos, as `result_of`."""
    try:
        maps = _maps(answer, LABELS, np.uint8, photos)
        return [
            PanopticResult(
                ids.astype(np.int32),
                [
                    Segment(each["id"], each["category_id"], each["score"], each["area"], tuple(each["box"]))
                    for each in json.loads(told)
                ],
            )
            for ids, told in zip(maps, _column(answer[SEGMENTS_JSON]), strict=True)
        ]
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"the server's answer is none to a photo: {error}") from None


def check_outputs(answer: Answer, photos: int, categories: Categories) -> None:
    """That all outputs which it has are what upsnet/contract.py says, and say the same as LABELS. InputError that
    names the one that does not."""
    results = results_of(answer, photos)
    checks: dict[str, Callable[[], object]] = {
        SEGMENTS_JSON: lambda: _each(answer, SEGMENTS_JSON, results, partial(_check_segments, categories)),
        LABELS16: lambda: _check_labels16(answer, results),
        COCO_PNG: lambda: _each(answer, COCO_PNG, results, _check_png),
        OVERLAY: lambda: _each(answer, OVERLAY, results, _check_overlay),
        STAGES_JSON: lambda: _each(answer, STAGES_JSON, results, _check_stages),
    }
    for name, check in checks.items():
        if name not in answer:
            continue
        try:
            check()
        except (*DECODE_ERRORS, AttributeError, InputError) as error:
            raise InputError(f"its output {name} is wrong: {first_line(error)}") from None


def _each(
    answer: Answer, name: str, results: Sequence[PanopticResult], check: Callable[[bytes, PanopticResult], None]
) -> None:
    for content, result in zip(_column(answer[name]), results, strict=True):
        check(content, result)


def _check_segments(categories: Categories, content: bytes, result: PanopticResult) -> None:
    there = areas_and_boxes(result.ids)
    there.pop(0, None)
    segments: list[dict[str, Any]] = json.loads(content)
    if sorted(each["id"] for each in segments) != sorted(there):
        raise ValueError(f"it has other segments than {LABELS}")
    for each in segments:
        known = categories[categories.index_of_id(each["category_id"])]
        if (each["name"], each["isthing"]) != (known.name, known.isthing):
            said, listed = (
                f"{name!r} ({'thing' if isthing else 'stuff'})"
                for name, isthing in ((each["name"], each["isthing"]), (known.name, known.isthing))
            )
            raise ValueError(f"it calls category {known.id} {said}, the class table {listed}")
        area, box = there[each["id"]]
        if (each["area"], tuple(each["box"])) != (area, tuple(box)):
            raise ValueError(f"area or box of segment {each['id']} are not those in {LABELS}")
        if not math.isfinite(each["score"]):  # whether it is right, the network says
            raise ValueError(f"the score of segment {each['id']} is {each['score']}")


def _check_labels16(answer: Answer, results: Sequence[PanopticResult]) -> None:
    for ids, result in zip(_maps(answer, LABELS16, np.uint16, len(results)), results, strict=True):
        _same(ids, result)


def _check_png(content: bytes, result: PanopticResult) -> None:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.mode != "RGB":
            raise ValueError(f"a PNG of mode {image.mode}, not RGB")
        _same(rgb2id(np.asarray(image)), result)


def _same(ids: np.ndarray, result: PanopticResult) -> None:
    if not np.array_equal(ids, result.ids):
        raise ValueError(f"it has other pixels than {LABELS}")


def _check_overlay(content: bytes, result: PanopticResult) -> None:
    height, width = result.ids.shape
    with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
        image.load()
        factor = image.width // width  # small photos are enlarged
        if factor < 1 or image.size != (factor * width, factor * height):
            raise ValueError(f"a picture of {image.width} x {image.height} pixels for a photo of {width} x {height}")


def _check_stages(content: bytes, _: PanopticResult) -> None:
    for name, seconds in json.loads(content).items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{seconds} seconds of {name}")


def _maps(answer: Answer, name: str, kind: type[np.generic], photos: int) -> list[np.ndarray]:
    """H x W of each photo, without what pads it to the largest."""
    sizes = np.frombuffer(answer[PHOTO_SIZES], np.int32).reshape(photos, 2)
    padded = np.frombuffer(answer[name], kind).reshape(photos, *sizes.max(axis=0).tolist())
    return [labels[:height, :width] for labels, (height, width) in zip(padded, sizes.tolist(), strict=True)]


def _column(content: bytes) -> list[bytes]:
    """The values of a BYTES tensor. ValueError or struct.error where it is none."""
    found, place = [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<I", content, place)
        found.append(content[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(content):
        raise ValueError(f"a tensor of bytes that ends {place - len(content)} bytes early")
    return found
