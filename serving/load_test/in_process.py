"""What the same question has for an answer in this process: the truth that a server's answers are held against."""

from __future__ import annotations

import json
import struct

import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferRequest

from serving.load_test.questions import Answer
from upsnet.contract import INPUTS, LABELS, OUTPUTS, PHOTO_MODEL, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.geometry import NetworkBatch
from upsnet.photos import read_photo
from upsnet.runtimes.predictor import Predictor, predict_photos

DTYPES = dict(zip(INPUTS, (np.uint8, np.int32, np.float32), strict=True))
SCORE = 1e-5  # by how much a score may differ


def differing(predictor: Predictor, message: bytes, answer: Answer) -> list[str]:
    """The outputs that differ from those of the same model in this process; of photos those in ASKED are looked at."""
    request = ModelInferRequest.FromString(message)
    if request.model_name == PHOTO_MODEL:
        return _of_photos(predictor, elements(request.raw_input_contents[0]), answer)
    contents = zip(request.inputs, request.raw_input_contents, strict=True)
    arrays = {each.name: np.frombuffer(content, DTYPES[each.name]).reshape(each.shape) for each, content in contents}
    images, sizes, scales = (arrays[name] for name in INPUTS)
    raw = predictor.predict(NetworkBatch(images, sizes, scales[:, 0]))
    return [name for name, array in zip(OUTPUTS, raw, strict=True) if array.tobytes() != answer.get(name)]


def elements(content: bytes) -> list[bytes]:
    """Of a BYTES tensor: each has its length before it."""
    found, place = [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<I", content, place)
        found.append(content[place + 4 : place + 4 + length])
        place += 4 + length
    return found


def _of_photos(predictor: Predictor, photos: list[bytes], answer: Answer) -> list[str]:
    arrays = [read_photo(photo) for photo in photos]
    # One by one: no answer may depend on the photos beside it.
    results = [predict_photos(predictor, [array])[0] for array in arrays]
    sizes = np.array([array.shape[:2] for array in arrays], np.int32)
    labels = np.zeros((len(arrays), *sizes.max(axis=0)), np.uint8)
    for row, result in zip(labels, results, strict=True):
        height, width = result.ids.shape
        row[:height, :width] = result.ids
    told = [json.loads(each) for each in elements(answer.get(SEGMENTS_JSON, b""))]
    categories = predictor.manifest.categories_table
    wanted = [
        [(each.id, categories[each.category].id, each.area, list(each.bbox), each.score) for each in result.segments]
        for result in results
    ]
    given = [
        [(each["id"], each["category_id"], each["area"], each["box"], each["score"]) for each in segments]
        for segments in told
    ]
    same = {
        LABELS: labels.tobytes() == answer.get(LABELS),
        PHOTO_SIZES: sizes.tobytes() == answer.get(PHOTO_SIZES),
        SEGMENTS_JSON: _same_segments(wanted, given),
    }
    return [name for name, is_same in same.items() if not is_same]


def _same_segments(wanted: list[list[tuple]], given: list[list[tuple]]) -> bool:
    def without_scores(photos: list[list[tuple]]) -> list[list[tuple]]:
        return [[segment[:-1] for segment in segments] for segments in photos]

    def scores(photos: list[list[tuple]]) -> list[float]:
        return [segment[-1] for segments in photos for segment in segments]

    same = without_scores(wanted) == without_scores(given)
    return same and bool(np.allclose(scores(wanted), scores(given), atol=SCORE))
