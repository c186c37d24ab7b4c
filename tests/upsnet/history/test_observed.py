"""What an evaluation gathers, against answers counted by hand on maps of a few pixels."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from upsnet.categories import Categories, Category
from upsnet.datasets.folder import Record
from upsnet.datasets.segments import SegmentInfo
from upsnet.history.evaluation import Evaluation
from upsnet.history.observed import VOID_BINS, WORST, Observed
from upsnet.metrics.evaluation import Answer, Partial
from upsnet.result import PanopticResult, Segment
from upsnet.runtimes.predictor import Prediction

TABLE = Categories(  # an id of 0 is a class like another; contiguous: 0 sky, 1 sea, 2 cat
    [
        Category(id=0, name="sky", isthing=False, color=(0, 0, 255)),
        Category(id=4, name="sea", isthing=False, color=(0, 99, 255)),
        Category(id=9, name="cat", isthing=True, color=(255, 0, 0)),
    ]
)

Map = Sequence[Sequence[int]] | np.ndarray


def an_answer(truth: Map, found: Map, image_id: int = 1, name: str = "a.png") -> Answer:
    """Maps of 0 void, 1 sky, 2 sea, 3 cat."""
    ids, result = np.array(truth, np.int32), np.array(found, np.int32)
    infos = [
        SegmentInfo(int(id), TABLE[id - 1].id, area=int((ids == id).sum()), iscrowd=False)
        for id in np.unique(ids)
        if id
    ]
    segments = [
        Segment(int(id), int(id) - 1, 0.9, int((result == id).sum()), (0, 0, 1, 1)) for id in np.unique(result) if id
    ]
    record = Record(image_id, name, Path(name), Path(name), infos)
    photo = np.full((*ids.shape, 3), 80, np.uint8)
    return Answer(record, photo, ids, Prediction(PanopticResult(result, segments)), 1.0)


def observed(*answers: Answer, worst: int = WORST) -> Observed:
    all_of_them = Observed(TABLE, worst)
    for answer in answers:
        alone = Partial(("pq",), TABLE)
        alone.add(answer, TABLE)
        all_of_them.add(answer, alone)
    return all_of_them


# The truth: 4 sky, 2 cat, 2 void. Found: the cat, 3 of the sky's pixels, void at 1 of the sky's and at 1 of the void's.
GOOD = an_answer([[1, 1, 1, 1], [3, 3, 0, 0]], [[1, 1, 1, 0], [3, 3, 1, 0]])
BAD = an_answer([[1, 1, 1, 1], [3, 3, 3, 3]], [[2, 2, 2, 2], [0, 0, 0, 0]], 2, "b.png")
PERFECT = an_answer([[1, 1, 1, 1]], [[1, 1, 1, 1]], 3, "c.png")
EMPTY = an_answer([[0, 0, 0, 0]], [[0, 0, 0, 0]], 4, "d.png")


def test_counted_by_hand() -> None:
    line = observed(GOOD, BAD, PERFECT, EMPTY).drawn().evaluation(7, None)
    assert (line.step, line.images) == (7, 4)
    by_name = {each.name: each for each in line.classes}
    sky, sea, cat = by_name["sky"], by_name["sea"], by_name["cat"]
    # sky: IoU 3/4 and 1 of two matches, one miss
    assert (sky.tp, sky.fp, sky.fn, sky.pq) == (2, 0, 1, pytest.approx(1.75 / 2.5))
    assert (cat.tp, cat.fp, cat.fn, cat.pq) == (1, 0, 1, pytest.approx(1 / 1.5))
    assert (sea.tp, sea.fp, sea.fn, sea.pq) == (0, 1, 0, 0.0)
    assert [(each.pixels, each.void) for each in (sky, sea, cat)] == [(12, 1), (0, 0), (6, 4)]
    void = line.void
    assert (void.pixels, void.predicted, void.truth, void.both) == (24, 2 + 4 + 4, 2 + 4, 1 + 4)
    shares = dict(zip(VOID_BINS, zip(void.predicted_bins, void.truth_bins, strict=True), strict=True))
    # prediction: 1/4, 1/2, none, all; truth: 1/4, none, none, all
    assert {edge: both for edge, both in shares.items() if any(both)} == {0.0: (1, 2), 0.5: (2, 1), 1.0: (1, 1)}
    # an image's PQ: the mean of .75 and 1; 0; 1; none
    assert line.validation is not None and line.validation.images == 3
    assert line.validation.mean == pytest.approx((0.875 + 0 + 1) / 3)
    assert line.validation.deviation == pytest.approx(np.std([0.875, 0, 1], ddof=1))
    assert [(each.image_id, each.file_name, each.pq) for each in line.worst] == [
        (2, "b.png", 0.0),
        (1, "a.png", 0.875),
        (3, "c.png", 1.0),
    ]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_add_up_to_one(world: int) -> None:
    answers = [
        an_answer([[1, 1, 1, 1, 3]], [[1] * (number % 4 + 1) + [0] * (4 - number % 4)], number) for number in range(9)
    ]
    whole = observed(*answers).drawn()
    first, *others = [pickle.loads(pickle.dumps(observed(*answers[rank::world]).drawn())) for rank in range(world)]
    for other in reversed(others):
        first += other
    assert first.evaluation(3, None) == whole.evaluation(3, None)
    assert first.pictures == whole.pictures and len(whole.pictures) == WORST
    assert [each.pq for each in whole.pictures] == sorted(each.pq for each in whole.pictures)


def test_nothing_was_evaluated() -> None:
    line = observed().drawn().evaluation(1, None)
    assert (line.images, line.validation, line.worst, line.void.pixels) == (0, None, [], 0)
    assert not any(each.occurs for each in line.classes)
    assert Evaluation.model_validate_json(line.model_dump_json()) == line


def test_one_image_has_no_spread() -> None:
    spread = observed(GOOD).spread()
    assert spread is not None and (spread.images, spread.deviation, spread.error) == (1, 0.0, 1.0)


def test_none_of_the_worst_is_kept_where_none_is_wanted() -> None:
    assert observed(GOOD, BAD, worst=0).drawn().pictures == []


def test_a_name_that_is_no_text() -> None:
    line = observed(an_answer([[1]], [[1]], 1, "\udcff.png")).drawn().evaluation(1, None)
    assert [each.file_name for each in line.worst] == ["\\udcff.png"]


def test_large_images_are_kept_small() -> None:
    large = np.ones((700, 1400), np.int32)
    found = observed(an_answer(large, large))
    ((_, _, photo, ids, result),) = found._bad
    assert photo.shape == (320, 640, 3) and ids.shape == result.ids.shape == (320, 640)
    assert len(pickle.dumps(found.drawn())) < 200_000
