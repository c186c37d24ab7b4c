"""What a server's photo model answers: predictions as the tensors that contract.py names, and overlays as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from upsnet.contract import COCO_PNG, LABELS, LABELS16, OVERLAY, PHOTO_SIZES, SEGMENTS_JSON, STAGES_JSON
from upsnet.datasets.coco_format import id2rgb
from upsnet.errors import InputError
from upsnet.photos import MAX_PIXELS, encode_image
from upsnet.prediction import PanopticPrediction

MOST_OF_JPEG = 65500  # pixels along a side
JPEG_QUALITY = 92
MOST_LABELS = 4 * MAX_PIXELS  # bytes of a request's maps: four of the largest photos as uint8


def overlay_kind(size: Sequence[int]) -> Literal["JPEG", "PNG"]:
    """A PNG where a JPEG cannot be as long."""
    return "JPEG" if max(size) <= MOST_OF_JPEG else "PNG"


def encode_overlay(picture: Image.Image) -> bytes:
    """An overlay as the bytes of the file that `upsnet predict` writes."""
    return encode_image(picture, overlay_kind(picture.size), quality=JPEG_QUALITY)


def photo_tensors(predictions: Sequence[PanopticPrediction], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Those of contract.PHOTO_OUTPUTS that are wanted, for the photos of one request.

    InputError where photos of such different sizes come together that their label maps would be huge.
    """
    sizes = np.array([prediction.ids.shape for prediction in predictions], np.int32).reshape(-1, 2)
    height, width = (int(most) for most in sizes.max(axis=0))
    check_room(len(sizes), height, width, label_bytes(wanted))
    makers: dict[str, Callable[[], np.ndarray]] = {
        LABELS: lambda: _labels(predictions, sizes, np.uint8),
        LABELS16: lambda: _labels(predictions, sizes, np.uint16),
        PHOTO_SIZES: lambda: sizes,
        SEGMENTS_JSON: lambda: _column([_segments_json(prediction) for prediction in predictions]),
        COCO_PNG: lambda: _column([encode_image(Image.fromarray(id2rgb(each.ids)), "PNG") for each in predictions]),
        STAGES_JSON: lambda: _column([json.dumps(dict(each.stages), allow_nan=False).encode() for each in predictions]),
        OVERLAY: lambda: _column([encode_overlay(prediction.overlay()) for prediction in predictions]),
    }
    return {name: make() for name, make in makers.items() if name in wanted}


def _labels(predictions: Sequence[PanopticPrediction], sizes: np.ndarray, kind: type[np.generic]) -> np.ndarray:
    """B x H x W, each photo's map in the upper left corner; 0 beside it."""
    height, width = (int(most) for most in sizes.max(axis=0))
    labels = np.zeros((len(predictions), height, width), kind)
    for row, prediction in zip(labels, predictions, strict=True):
        row[: prediction.ids.shape[0], : prediction.ids.shape[1]] = prediction.ids
    return labels


def label_bytes(wanted: Collection[str]) -> int:
    """Bytes of a pixel in all label maps that are wanted."""
    return (LABELS in wanted) + 2 * (LABELS16 in wanted)


def check_room(count: int, height: int, width: int, pixel_bytes: int) -> int:
    """Bytes of the label maps of a request's photos, each padded to the largest. InputError where they are too many."""
    size = count * height * width * pixel_bytes
    if size > MOST_LABELS:
        raise InputError(
            f"the label maps of {count} photos of up to {height} pixels' height and {width} pixels' width take "
            f"{size} bytes, over the limit of {MOST_LABELS}; send them one at a time"
        )
    return size


def _segments_json(prediction: PanopticPrediction) -> bytes:
    return json.dumps(prediction.to_dict()["segments"], allow_nan=False).encode()


def _column(values: Sequence[bytes]) -> np.ndarray:
    """Objects B x 1, which is how Triton wants BYTES."""
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column
