from __future__ import annotations

import numpy as np
import pytest

from upsnet.categories import Categories
from upsnet.datasets.segments import SegmentInfo
from upsnet.errors import InputError
from upsnet.metrics.mean_iou import UNDECIDED, MeanIoU

TABLE = Categories.from_coco(
    [
        {"id": 9, "name": "sky", "isthing": 0},
        {"id": 200, "name": "grass", "isthing": 0},
        {"id": 3, "name": "dog", "isthing": 1},
        {"id": 7, "name": "cat", "isthing": 1},
    ]
)
SKY, GRASS, DOG, CAT = range(4)


segment = SegmentInfo


def row(*runs: tuple[int, int]) -> np.ndarray:
    """(value, pixels) -> 1 x n."""
    return np.repeat([value for value, _ in runs], [pixels for _, pixels in runs])[None]


def scored(ids: np.ndarray, segments: list[SegmentInfo], predicted: np.ndarray) -> MeanIoU:
    stat = MeanIoU(4)
    stat.accumulate(ids, segments, predicted, TABLE, 1)
    return stat


def test_by_hand() -> None:
    """Sky 40 of which 10 called grass, grass 20 right; a dog of 10 called cat; void and a crowd that do not count."""
    ids = row((500, 40), (600, 20), (70, 10), (0, 30), (80, 5))
    predicted = row((SKY, 30), (GRASS, 30), (CAT, 10), (SKY, 30), (DOG, 5))
    stat = scored(ids, [segment(500, 9), segment(600, 200), segment(70, 3), segment(80, 7, iscrowd=True)], predicted)
    assert stat.confusion.dtype == np.int64
    assert stat.confusion.tolist() == [[30, 10, 0, 0], [0, 20, 0, 0], [0, 0, 0, 10], [0, 0, 0, 0]]
    report = stat.results(TABLE)
    assert report["per_class"] == {"9": 0.75, "200": 20 / 30, "3": 0.0, "7": 0.0}
    assert (report["miou"], report["n"]) == (pytest.approx((0.75 + 20 / 30) / 4), 4)


def test_two_instances_of_a_class_are_one_region_and_absent_classes_are_left_out() -> None:
    ids = row((1, 10), (2, 10), (3, 20))
    stat = scored(ids, [segment(1, 3), segment(2, 3), segment(3, 9)], row((DOG, 20), (SKY, 20)))
    assert stat.results(TABLE) == {"miou": 1.0, "n": 2, "per_class": {"9": 1.0, "200": None, "3": 1.0, "7": None}}


def test_ids_without_a_segment_do_not_count() -> None:
    stat = scored(row((5, 10), (6, 10)), [segment(6, 9)], row((GRASS, 10), (SKY, 10)))
    assert stat.confusion.sum() == 10 and stat.results(TABLE)["miou"] == 1.0


def test_undecided_pixels_are_missed_by_their_class_and_held_against_no_other() -> None:
    """Sky 40 of which 10 undecided; undecided void does not count; parts add up."""
    ids, predicted = row((500, 40), (0, 30)), row((SKY, 30), (UNDECIDED, 40))
    stat = scored(ids, [segment(500, 9)], predicted)
    assert stat.results(TABLE)["per_class"] == {"9": 0.75, "200": None, "3": None, "7": None}
    stat += scored(row((70, 10)), [segment(70, 3)], row((UNDECIDED, 10)))
    assert stat.results(TABLE) == {"miou": 0.375, "n": 2, "per_class": {"9": 0.75, "200": None, "3": 0.0, "7": None}}


def test_nothing_at_all() -> None:
    report = MeanIoU(4).results(TABLE)
    assert report["miou"] is None and report["n"] == 0 and set(report["per_class"].values()) == {None}


def test_agrees_with_bincount_over_pixels() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 50, 60))
    category = np.array([9, 200, 3, 7])
    stat = scored(truth + 1, [segment(i + 1, int(category[i])) for i in range(4)], predicted.astype(np.uint8))
    assert (stat.confusion == np.bincount((truth * 4 + predicted).ravel(), minlength=16).reshape(4, 4)).all()


def test_parts_add_up() -> None:
    first = scored(row((1, 10)), [segment(1, 9)], row((SKY, 10)))
    second = scored(row((1, 10)), [segment(1, 9)], row((GRASS, 10)))
    first += second
    assert first.confusion.tolist() == [[10, 10, 0, 0]] + [[0] * 4] * 3


@pytest.mark.parametrize(
    ("ids", "segments", "predicted", "message"),
    [
        (row((1, 5)), [segment(1, 9)], row((SKY, 4)), r"image 1: .*\[1, 4\].*\[1, 5\]"),
        (row((1, 5)), [segment(1, 9)], row((4, 5)), "image 1: .*category 4"),
        (row((1, 5)), [segment(1, 55)], row((SKY, 5)), "image 1: .*category id 55"),
    ],
)
def test_refusals_add_nothing(
    ids: np.ndarray, segments: list[SegmentInfo], predicted: np.ndarray, message: str
) -> None:
    stat = MeanIoU(4)
    with pytest.raises(InputError, match=message):
        stat.accumulate(ids, segments, predicted, TABLE, 1)
    assert not stat.confusion.any()
