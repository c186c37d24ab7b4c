from __future__ import annotations

import numpy as np
import pytest

from upsnet.categories import Categories, Category
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, NetworkImage, ResizeRule
from upsnet.manifest import Manifest
from upsnet.result import Segment, decode
from upsnet.runtimes.predictor import RawPrediction, predict_photos


def net(size: tuple[int, int], original: tuple[int, int]) -> NetworkImage:
    return NetworkImage(np.zeros((4, 4, 3), np.uint8), size, 1.0, original)


def rows(*categories_and_scores: tuple[int, float]) -> np.ndarray:
    table = np.zeros((5, 7), np.float32)
    for row, (category, score) in zip(table, categories_and_scores, strict=False):
        row[:2] = category, score
    return table


def test_decode_by_hand() -> None:
    panoptic = np.array([[1, 1, 9, 9], [0, 3, 9, 9], [9, 9, 9, 9]], np.uint8)  # 9 lies in the padding
    result = decode(panoptic, rows((4, 1.0), (5, 0.9), (0, 0.5)), 3, net((2, 2), (4, 2)))
    assert result.ids.tolist() == [[1, 1], [1, 1], [0, 3], [0, 3]] and result.ids.dtype == np.int32
    assert result.segments == [Segment(1, 4, 1.0, 4, (0, 0, 2, 2)), Segment(3, 0, 0.5, 2, (1, 2, 1, 2))]


def test_segments_that_vanish_are_dropped_and_nothing_detected_is_fine() -> None:
    panoptic = np.array([[1, 2], [1, 1]], np.uint8)
    result = decode(panoptic, rows((0, 1.0), (1, 0.5)), 2, net((2, 2), (1, 1)))
    assert result.segments == [Segment(1, 0, 1.0, 1, (0, 0, 1, 1))]
    assert decode(np.zeros((2, 2), np.uint8), rows(), 0, net((2, 2), (7, 5))).segments == []


@pytest.mark.parametrize(
    ("panoptic", "count", "message"),
    [
        (np.full((2, 2), 3, np.uint8), 2, "row 2, but segment_count is 2"),
        (np.zeros((2, 2), np.int32), 0, "uint8"),
        (np.zeros((1, 2, 2), np.uint8), 0, "H x W"),
        (np.zeros((2, 2), np.uint8), 6, "segment_count"),
        (np.zeros((1, 2), np.uint8), 0, "does not hold"),
    ],
)
def test_decode_refuses(panoptic: np.ndarray, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(panoptic, rows(), count, net((2, 2), (2, 2)))


class BrightHalves:
    """A predictor whose one segment is every pixel of the image that is not black; remembers its batch sizes."""

    name = "bright"
    device_name, kernels = "cpu", "none"

    def __init__(self) -> None:
        table = Categories([Category(id=8, name="bright", isthing=False, color=(1, 2, 3))])
        resize = ResizeRule(short_side=32, max_side=64)
        self.manifest = Manifest(name="x", categories=list(table), resize=resize, max_detections=1, max_batch=2)
        self.batches: list[int] = []

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        images, sizes, scales = batch
        assert images.dtype == np.uint8 and sizes.dtype == np.int32 and scales.dtype == np.float32
        self.batches.append(len(images))
        segments = np.zeros((len(images), 2, 7), np.float32)
        segments[:, 0, 1] = 1
        return RawPrediction((images[..., 0] > 127).astype(np.uint8), segments, np.ones(len(images), np.int32))

    def close(self) -> None:
        pass


def test_predict_photos_batches_and_returns_each_photos_size() -> None:
    predictor = BrightHalves()
    photos = []
    for height, width in ((32, 64), (96, 40), (7, 9)):
        photo = np.zeros((height, width, 3), np.uint8)
        photo[:, : width // 2] = 255
        photos.append(photo)
    results = predict_photos(predictor, photos)
    assert predictor.batches == [2, 1]
    for photo, result in zip(photos, results, strict=True):
        assert result.ids.shape == photo.shape[:2]
        assert abs(result.segments[0].area - (photo[..., 0] > 0).sum()) <= photo.shape[0]
        assert result.segments[0].area == (result.ids == 1).sum()
    assert predict_photos(predictor, []) == []
