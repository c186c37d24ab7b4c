"""The rules of panoptic quality on id maps: known answers, refusals, properties, an independent implementation."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.figures import near
from upsnet.categories import Categories
from upsnet.command_line.pq import table
from upsnet.errors import InputError
from upsnet.metrics.pq import PQStat

PERSON, CAR, SKY = 1, 3, 187
CATEGORIES = [{"id": PERSON, "isthing": 1}, {"id": CAR, "isthing": 1}, {"id": SKY, "isthing": 0}]


Info = dict[str, Any]
Scene = tuple[np.ndarray, list[Info], np.ndarray, list[Info]]


# Known answers, one image of 10 x 10 pixels whose columns hold the ids


def columns(*runs: tuple[int, int]) -> np.ndarray:
    """(id, pixels) runs of 100 pixels together -> 10 x 10 ids; what is left is void."""
    flat = np.zeros(100, np.int32)
    start = 0
    for id, pixels in runs:
        flat[start : start + pixels] = id
        start += pixels
    return flat.reshape(10, 10)


def segment(id: Any, category: Any, area: Any = None, iscrowd: int = 0) -> Info:
    return {"id": id, "category_id": category, "iscrowd": iscrowd, **({} if area is None else {"area": area})}


def score(gt_ids: np.ndarray, gt_segments: list[Info], pred_ids: np.ndarray, pred_segments: list[Info]) -> PQStat:
    stat = PQStat()
    stat.accumulate(gt_ids, gt_segments, pred_ids, pred_segments)
    return stat


def counts(stat: PQStat, category: int) -> tuple[int, int, int, float]:
    count = stat.counts[category]
    return count.tp, count.fp, count.fn, count.iou


def test_perfect() -> None:
    ids = columns((5, 40), (9, 60))
    segments = [segment(5, PERSON, 40), segment(9, SKY, 60)]
    results = score(ids, segments, ids, segments).results(CATEGORIES)["results"]
    assert results["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}
    assert results["Things"]["n"] == results["Stuff"]["n"] == 1


def test_pq_by_hand() -> None:
    """Person: IoU 30/40 matched, one miss, one false positive: PQ = .75 / 2. Sky: IoU 10/20: exactly half, no match."""
    gt = columns((1, 40), (2, 10), (3, 20), (4, 30))
    pred = columns((1, 30), (2, 20), (3, 10), (4, 40))
    gt_segments = [segment(1, PERSON, 40), segment(2, PERSON, 10), segment(3, SKY, 20), segment(4, CAR, 30)]
    pred_segments = [segment(1, PERSON), segment(2, PERSON), segment(3, SKY), segment(4, CAR)]
    stat = score(gt, gt_segments, pred, pred_segments)
    assert counts(stat, PERSON) == (1, 1, 1, 0.75)
    assert counts(stat, SKY) == (0, 1, 1, 0.0)
    assert counts(stat, CAR) == (1, 0, 0, 0.75)
    report = stat.results(CATEGORIES)
    assert report["per_class"]["1"] == {"pq": 0.375, "sq": 0.75, "rq": 0.5, "tp": 1, "fp": 1, "fn": 1, "iou": 0.75}
    assert report["results"]["Things"] == {"pq": (0.375 + 0.75) / 2, "sq": 0.75, "rq": 0.75, "n": 2}
    assert report["results"]["Stuff"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_another_category_never_matches() -> None:
    ids = columns((1, 100))
    stat = score(ids, [segment(1, PERSON, 100)], ids, [segment(1, CAR)])
    assert counts(stat, PERSON) == (0, 0, 1, 0.0) and counts(stat, CAR) == (0, 1, 0, 0.0)


def test_void_is_no_part_of_the_union() -> None:
    """The prediction covers 20 of the segment and 60 of void: IoU 20 / (80 + 20 - 20 - 60) = 1."""
    stat = score(columns((1, 20)), [segment(1, PERSON, 20)], columns((7, 80)), [segment(7, PERSON)])
    assert counts(stat, PERSON) == (1, 0, 0, 1.0)


@pytest.mark.parametrize(("on_void", "fp"), [(50, 1), (51, 0), (49, 1)])
def test_a_false_positive_needs_half_outside_void(on_void: int, fp: int) -> None:
    gt = columns((1, 100 - on_void))
    stat = score(gt, [segment(1, SKY, 100 - on_void)], columns((7, 100)), [segment(7, PERSON)])
    assert counts(stat, PERSON) == (0, fp, 0, 0.0)


@pytest.mark.parametrize(("category", "on_crowd", "fp"), [(PERSON, 51, 0), (PERSON, 50, 1), (CAR, 100, 1)])
def test_crowds_excuse_predictions_of_their_category_and_are_never_missed(
    category: int, on_crowd: int, fp: int
) -> None:
    gt = columns((1, on_crowd), (2, 100 - on_crowd))
    gt_segments = [segment(1, PERSON, on_crowd, iscrowd=1), segment(2, SKY, 100 - on_crowd)][: 2 - (on_crowd == 100)]
    stat = score(gt, gt_segments, columns((7, 100)), [segment(7, category)])
    assert stat.counts[category].fp == fp
    assert stat.counts[PERSON].fn == stat.counts[PERSON].tp == 0
    assert not stat.warnings


def test_void_and_crowd_add_up() -> None:
    gt = columns((1, 30), (2, 40))  # crowd 30, sky 40, void 30
    gt_segments = [segment(1, PERSON, iscrowd=1), segment(2, SKY, 40)]
    assert score(gt, gt_segments, columns((7, 100)), [segment(7, PERSON)]).counts[PERSON].fp == 0


def test_quirk_of_two_crowds_only_the_last_counts() -> None:
    gt = columns((1, 60), (2, 40))
    crowds = [segment(1, PERSON, 60, iscrowd=1), segment(2, PERSON, 40, iscrowd=1)]
    pred = [segment(7, PERSON)]
    first_forgotten = score(gt, crowds, columns((7, 100)), pred)
    assert first_forgotten.counts[PERSON].fp == 1
    assert score(gt, crowds[::-1], columns((7, 100)), pred).counts[PERSON].fp == 0
    assert "image 0" in first_forgotten.warnings[0] and "2 crowds of category 1" in first_forgotten.warnings[0]


def test_quirk_the_area_of_the_ground_truth_comes_from_its_json() -> None:
    ids = columns((1, 50), (2, 50))
    gt = [segment(1, PERSON, 80), segment(2, SKY, 50)]
    stat = score(ids, gt, ids, [segment(1, PERSON), segment(2, SKY)])
    assert counts(stat, PERSON) == (1, 0, 0, 50 / 80)
    assert "1 (area 80 in the JSON, 50 pixels in the PNG)" in stat.warnings[0]


def test_quirk_ground_truth_ids_that_are_not_listed_are_neither_segment_nor_void() -> None:
    stat = score(columns((1, 100)), [], columns((7, 100)), [segment(7, PERSON)])
    assert counts(stat, PERSON) == (0, 1, 0, 0.0) and "ids 1 that its JSON lacks" in stat.warnings[0]


def test_quirk_a_predicted_id_zero_counts_as_a_segment() -> None:
    ids = columns((0, 50), (2, 50))
    stat = score(columns((1, 50), (2, 50)), [segment(1, PERSON, 50)], ids, [segment(0, PERSON), segment(2, SKY)])
    assert counts(stat, PERSON) == (1, 0, 0, 1.0) and "id 0" in stat.warnings[0]


def test_duplicate_entries_the_last_counts() -> None:
    ids = columns((1, 100))
    stat = score(ids, [segment(1, CAR, 1), segment(1, PERSON, 100)], ids, [segment(1, CAR), segment(1, PERSON)])
    assert counts(stat, PERSON) == (1, 0, 0, 1.0) and len(stat.warnings) == 2


GOOD = (columns((1, 100)), [segment(1, PERSON, 100)], columns((7, 100)), [segment(7, PERSON)])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, columns((1, 100))[:1], "the prediction is 10 x 10 pixels but the ground truth 1 x 10"),
        (2, columns((7, 100))[:, :1], "10 x 1 pixels but the ground truth 10 x 10"),
        (2, columns((7, 100)).reshape(5, 20), "5 x 20"),
        (2, columns((7, 100)).astype(float), "not integers"),
        (2, columns((-7, 100)), "must lie in"),
        (2, columns((2**24, 100)), "must lie in"),
        (2, columns((7, 90), (8, 10)), "ids 8 that its JSON lacks"),
        (3, [segment(7, PERSON), segment(4, CAR)], "ids 4 that its PNG lacks"),
        (3, [segment(7, PERSON), segment(-4, CAR)], "ids -4 that its PNG lacks"),
        (1, [segment(0, PERSON, 1)], "lists id 0"),
        (1, [segment(1, PERSON)], "segment 1 has no area"),
        (1, [segment(1, PERSON, 40)], "IoU above 1"),
        (1, [segment(1, PERSON, 0)], "IoU above 1"),
        (1, [segment(1, PERSON, math.nan)], "not a number"),
        (1, [segment(1, PERSON, "100")], "not a number"),
        (1, [segment(1, PERSON, 100, iscrowd=2)], "'iscrowd' is 2, not 0 or 1"),
        (1, [segment(1 << 24, PERSON, 100)], "no PNG holds this id"),
        (1, [{"id": 1, "category_id": 1, "iscrowd": "no"}], "'iscrowd' is 'no'"),
        (1, [{"category_id": 1, "iscrowd": 0}], r"segments_info\[0\]: key 'id' is missing"),
        (3, [{"id": 7}], "segment 7: key 'category_id' is missing"),
        (3, [segment("7", PERSON)], "'id' is '7', not an integer"),
        (3, [segment(7.5, PERSON)], "'id' is 7.5, not an integer"),
        (3, [segment(7, [1])], r"'category_id' is \[1\], not an integer"),
        (3, [None], "is not an object"),
        (3, {"id": 7}, "not a list"),
    ],
)
def test_refusals_name_the_image_and_add_nothing(place: int, value: Any, message: str) -> None:
    stat = PQStat()
    scene: Any = [*GOOD[:place], value, *GOOD[place + 1 :]]
    gt_ids, gt_segments, pred_ids, pred_segments = scene
    with pytest.raises(InputError, match=f"image photo 7: .*{message}"):
        stat.accumulate(gt_ids, gt_segments, pred_ids, pred_segments, "photo 7")
    assert stat.images == 0 and not stat.counts and not stat.warnings


def test_truth_without_iscrowd_is_no_crowd_and_a_warning() -> None:
    stat = score(GOOD[0], [{"id": 1, "category_id": PERSON, "area": 100}], *GOOD[2:])
    assert counts(stat, PERSON) == (1, 0, 0, 1.0)
    assert stat.warnings == ["image 0: ground truth: segment 1 has no iscrowd; 0 is taken"]


def test_results_refuse_an_unknown_predicted_category_and_leave_out_unknown_ground_truth() -> None:
    stat = score(columns((1, 100)), [segment(1, 55, 100)], *GOOD[2:])
    assert stat.results(CATEGORIES)["results"]["All"]["n"] == 1
    with pytest.raises(InputError, match=r"image 0: .*unknown category_id 1"):
        stat.results([{"id": 55, "isthing": 1}])
    for bad in (None, [7], [{"id": 1}], [{"isthing": 1}]):
        with pytest.raises(InputError, match="categories"):
            stat.results(bad)  # type: ignore[arg-type]


def test_results_take_a_categories_table() -> None:
    entries = [{**entry, "name": str(entry["id"])} for entry in CATEGORIES]
    stat = score(*GOOD)
    near(stat.results(Categories.from_coco(entries)), stat.results(CATEGORIES))


def test_nothing_at_all() -> None:
    report = PQStat().results(CATEGORIES)
    assert report["results"]["All"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert report["per_class"]["1"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "tp": 0, "fp": 0, "fn": 0, "iou": 0.0}
    assert "-" in table(report)


# Properties, and an independent implementation: whole masks, exact fractions


def by_masks(
    gt_ids: np.ndarray, gt_segments: list[Info], pred_ids: np.ndarray, pred_segments: list[Info]
) -> dict[int, list[Any]]:
    out: defaultdict[int, list[Any]] = defaultdict(lambda: [0, 0, 0, 0.0])
    void = gt_ids == 0
    matched = set()
    for gt in gt_segments:
        if gt["iscrowd"]:
            continue
        found = False
        for pred in pred_segments:
            a, b = gt_ids == gt["id"], pred_ids == pred["id"]
            union = (a | (b & ~void)).sum()
            iou = Fraction(int((a & b).sum()), int(union))
            if iou > Fraction(1, 2) and gt["category_id"] == pred["category_id"]:
                found = True
                matched.add(pred["id"])
                out[gt["category_id"]][0] += 1
                out[gt["category_id"]][3] += float(iou)
        out[gt["category_id"]][2] += not found
    for pred in pred_segments:
        if pred["id"] in matched:
            continue
        mask = pred_ids == pred["id"]
        crowds = [gt["id"] for gt in gt_segments if gt["iscrowd"] and gt["category_id"] == pred["category_id"]]
        excused = void | (gt_ids == crowds[-1]) if crowds else void
        out[pred["category_id"]][1] += int(2 * (mask & excused).sum() <= mask.sum())
    return {category: values for category, values in out.items() if any(values)}


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Two related id maps with their segments: shared regions, noise, void, crowds, ids up to 2^24 - 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    pool = np.array([0, *rng.choice(2**24 - 1, 6, replace=False) + 1], np.int32)
    gt = np.sort(rng.choice(pool, (height, width)), axis=None).reshape(height, width)
    noise = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.4]))
    pred = np.where(noise, rng.choice(pool, (height, width)), gt)
    category = {int(id): int(rng.choice([PERSON, CAR, SKY])) for id in pool}
    gt_segments = [
        segment(int(id), category[int(id)], int((gt == id).sum()), int(rng.random() < 0.3))
        for id in rng.permutation(np.unique(gt[gt > 0]))
    ]
    pred_segments = [
        segment(int(id), category[int(id)] if rng.random() < 0.8 else PERSON) for id in np.unique(pred[pred > 0])
    ]
    return gt, gt_segments, pred, pred_segments


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_agrees_with_whole_masks(scene: Scene) -> None:
    stat = score(*scene)
    wanted = by_masks(*scene)
    assert stat.counts.keys() >= wanted.keys()
    for category in stat.counts:
        near(dict(enumerate(counts(stat, category))), dict(enumerate(wanted.get(category, (0, 0, 0, 0.0)))))


@given(scenes())
@settings(max_examples=50, deadline=None)
def test_ground_truth_against_itself_is_perfect(scene: Scene) -> None:
    gt, gt_segments = scene[:2]
    gt_segments = [{**info, "iscrowd": 0} for info in gt_segments]
    for figures in score(gt, gt_segments, gt, gt_segments).results(CATEGORIES)["per_class"].values():
        assert figures["tp"] == 0 or figures["pq"] == figures["sq"] == figures["rq"] == 1
        assert figures["fp"] == figures["fn"] == 0


@given(scenes(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_other_ids_and_another_order_of_predictions_change_nothing(scene: Scene, random: Random) -> None:
    gt, gt_segments, pred, pred_segments = scene
    new = {info["id"]: id for info, id in zip(pred_segments, random.sample(range(1, 2**24), 20), strict=False)}
    renamed = np.vectorize(lambda id: new.get(id, 0), otypes=[np.int32])(pred)
    shuffled = [{**info, "id": new[info["id"]]} for info in pred_segments]
    random.shuffle(shuffled)
    near(score(gt, gt_segments, renamed, shuffled).results(CATEGORIES), score(*scene).results(CATEGORIES))


def test_adding_stats_equals_one_stat() -> None:
    one, both, other = PQStat(), PQStat(), PQStat()
    for stat in (one, both):
        stat.accumulate(*GOOD)
    for stat in (other, both):
        stat.accumulate(GOOD[0], GOOD[1], np.zeros((10, 10), np.int32), [])
    one += other
    assert one.images == 2 and one.results(CATEGORIES) == both.results(CATEGORIES)
