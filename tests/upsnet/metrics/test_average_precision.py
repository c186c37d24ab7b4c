"""AP by hand, and against pycocotools fed with files that were made independently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from tests.upsnet.metrics.official import official_ap
from upsnet.categories import Categories
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.segments import SegmentInfo, parse_segments
from upsnet.errors import InputError
from upsnet.metrics.average_precision import AveragePrecision, truth_objects
from upsnet.runtimes.predictor import Instances

NAMES = [(9, "sky", 0), (3, "dog", 1), (7, "cat", 1)]
TABLE = Categories.from_coco([{"id": id, "name": name, "isthing": isthing} for id, name, isthing in NAMES])
DOG, CAT = 1, 2
SIZE = (120, 160)


def scene(*objects: tuple[int, tuple[int, int, int, int], int]) -> tuple[np.ndarray, list[SegmentInfo]]:
    """(category id, (x1, y1, x2, y2), iscrowd) -> truth ids, first object on top of sky, and segments."""
    ids = np.full(SIZE, 1000)
    segments = [SegmentInfo(1000, 9)]
    for number, (category, (x1, y1, x2, y2), crowd) in enumerate(objects, 1):
        ids[y1:y2, x1:x2] = number * 70_000
        segments.append(SegmentInfo(number * 70_000, category, bool(crowd)))
    return ids, segments


def detections(*rows: tuple[int, tuple[float, float, float, float], float]) -> Instances:
    """(contiguous category, box, score) with full masks, best first."""
    rows = tuple(sorted(rows, key=lambda row: -row[2]))
    return Instances(
        boxes=np.array([[box for _, box, _ in rows]], np.float32).reshape(1, -1, 4),
        scores=np.array([[score for *_, score in rows]], np.float32),
        categories=np.array([[category for category, *_ in rows]], np.int64).reshape(1, -1),
        counts=np.array([len(rows)], np.int32),
        masks=np.ones((1, len(rows), 28, 28), np.float32),
    )


def scored(*images: tuple[tuple[np.ndarray, list[SegmentInfo]], Instances]) -> AveragePrecision:
    stat = AveragePrecision()
    for image_id, ((ids, segments), found) in enumerate(images, 1):
        stat.accumulate(image_id, ids, segments, found, TABLE)
    return stat


BOX, OTHER = (10, 10, 66, 66), (90, 20, 146, 76)


def test_perfect() -> None:
    truth = scene((3, BOX, 0), (7, OTHER, 0))
    report = scored((truth, detections((DOG, BOX, 0.9), (CAT, OTHER, 0.8)))).results(TABLE)
    assert report["box"]["AP"] == pytest.approx(1) and report["box"]["per_class"] == pytest.approx({"3": 1, "7": 1})
    assert report["mask"]["AP50"] == pytest.approx(1)
    assert report["box"]["APs"] is None and report["box"]["APm"] == pytest.approx(1)


def test_half_of_the_objects_found() -> None:
    """One of two dogs at every threshold: precision 1 up to recall .5, which is 51 of the 101 recall points."""
    truth = scene((3, BOX, 0), (3, OTHER, 0))
    report = scored((truth, detections((DOG, BOX, 0.9)))).results(TABLE)
    assert report["box"]["AP"] == pytest.approx(51 / 101)
    assert report["box"]["per_class"] == {"3": pytest.approx(51 / 101), "7": None}


def test_a_better_scored_false_positive_halves_precision() -> None:
    truth = scene((3, BOX, 0))
    report = scored((truth, detections((DOG, OTHER, 0.9), (DOG, BOX, 0.8)))).results(TABLE)
    assert report["box"]["AP"] == pytest.approx(0.5)


def test_iou_decides_the_thresholds() -> None:
    """A box of 56 x 42 inside one of 56 x 56: IoU .75 passes .5, .55, .. .75: six of ten thresholds."""
    truth = scene((3, BOX, 0))
    report = scored((truth, detections((DOG, (10, 10, 66, 52), 0.9)))).results(TABLE)["box"]
    assert (report["AP"], report["AP50"], report["AP75"]) == (pytest.approx(0.6), pytest.approx(1), pytest.approx(1))


def test_another_class_is_wrong() -> None:
    report = scored((scene((3, BOX, 0)), detections((CAT, BOX, 0.9)))).results(TABLE)
    assert report["box"]["AP"] == 0 and report["box"]["per_class"] == {"3": 0, "7": None}


def test_crowds_are_neither_missed_nor_is_anything_in_them_wrong() -> None:
    truth = scene((3, BOX, 0), (3, OTHER, 1))
    report = scored((truth, detections((DOG, (95, 25, 120, 50), 0.95), (DOG, BOX, 0.9)))).results(TABLE)
    assert report["box"]["AP"] == pytest.approx(1) and report["mask"]["AP50"] == pytest.approx(1)
    alone = scored((scene((3, OTHER, 1)), detections((DOG, OTHER, 0.9)))).results(TABLE)
    assert alone["box"]["AP"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out(value: float) -> None:
    """A box or a score that is not finite is no detection, and such a pixel of a mask is no part of it."""
    truth = scene((3, BOX, 0))
    plain = scored((truth, detections((DOG, BOX, 0.9)))).results(TABLE)
    for column in ("boxes", "scores"):
        found = detections((DOG, OTHER, 0.95), (DOG, BOX, 0.9))
        getattr(found, column)[0, 0] = value
        assert scored((truth, found)).results(TABLE) == plain
    found = detections((DOG, BOX, 0.9))
    found.masks[0, 0, :20] = value
    report = scored((truth, found)).results(TABLE)
    assert report["box"] == plain["box"]
    assert report["mask"]["AP50"] == pytest.approx(1 if value == np.inf else 0)  # the rest is too little of the mask


def test_ids_of_any_sign_and_truth_as_json_has_it() -> None:
    table = Categories.from_coco([{"id": id, "name": str(id), "isthing": id != 9} for id in (9, -(2**62), 2**62)])
    ids, _ = scene((3, BOX, 0), (7, OTHER, 0))
    infos = [{"id": 70_000 * n, "category_id": id, "iscrowd": 0} for n, id in ((1, -(2**62)), (2, 2**62))]
    stat = AveragePrecision()
    stat.accumulate(-5, ids, infos, detections((1, BOX, 0.9), (2, OTHER, 0.8)), table)
    assert stat.results(table)["box"]["per_class"] == {str(-(2**62)): pytest.approx(1), str(2**62): pytest.approx(1)}


def test_no_detection_and_no_image() -> None:
    assert scored((scene((3, BOX, 0)), detections())).results(TABLE)["mask"]["AP"] == 0
    empty = AveragePrecision().results(TABLE)
    assert empty["box"]["AP"] is None and empty["mask"]["per_class"] == {"3": None, "7": None}


def random_images(count: int, seed: int = 0) -> list[tuple[tuple[np.ndarray, list[SegmentInfo]], Instances]]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects, rows = [], []
        for _ in range(rng.integers(0, 6)):
            x, y = int(rng.integers(0, 120)), int(rng.integers(0, 90))
            box = (x, y, x + int(rng.integers(4, 40)), y + int(rng.integers(4, 30)))
            category = int(rng.choice([3, 7]))
            objects.append((category, box, int(rng.random() < 0.2)))
            if rng.random() < 0.8:
                rows.append((TABLE.index_of_id(category), tuple(np.add(box, rng.normal(0, 2, 4))), rng.random()))
            if rng.random() < 0.3:
                rows.append((int(rng.choice([DOG, CAT])), tuple(np.add(box, 15)), rng.random()))
        images.append((scene(*objects), detections(*rows)))
    return images


def test_agrees_with_pycocotools_on_independent_files(tmp_path: Path) -> None:
    """Truth: boxes, areas and uncompressed run lengths made here, pixel by pixel. Detections: the written file."""
    images = random_images(12)
    stat = scored(*images)
    stat.write(tmp_path / "instances.json")
    annotations: list[dict[str, Any]] = []
    for image_id, ((ids, segments), _) in enumerate(images, 1):
        for segment in segments[1:]:
            mask = ids == segment.id
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
            flat = np.concatenate([[0], mask.ravel(order="F"), [0]]).astype(int)
            edges = np.flatnonzero(np.diff(flat))
            counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": segment.category_id,
                    "iscrowd": int(segment.iscrowd),
                    "bbox": box,
                    "area": int(mask.sum()),
                    "segmentation": {"size": list(SIZE), "counts": counts},
                }
            )
    gt = {
        "images": [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": 3}, {"id": 7}],
    }
    written = json.loads((tmp_path / "instances.json").read_text())
    report = stat.results(TABLE)
    visible = all((ids == segment.id).any() for (ids, segments), _ in images for segment in segments)
    assert visible, "the seed hides no object entirely: a hidden one counts as missed here and does not exist there"
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        wanted = official_ap(gt, written, kind)
        mine = [-1 if report[name][key] is None else report[name][key] for key in list(report[name])[:6]]
        assert mine == pytest.approx(wanted, abs=1e-9)
        assert 0.1 < wanted[0] < 0.9


def test_results_file_is_official(tmp_path: Path) -> None:
    stat = scored((scene((3, BOX, 0)), detections((DOG, BOX, 0.9), (CAT, OTHER, 0.5))), (scene(), detections()))
    stat.write(tmp_path / "instances.json")
    rows = json.loads((tmp_path / "instances.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(1, 3), (1, 7)]
    assert rows[0]["bbox"] == [10, 10, 56, 56] and rows[0]["score"] == pytest.approx(0.9)
    assert rle.decode(rows[0]["segmentation"]).shape == SIZE
    scored((scene(), detections())).write(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_parts_add_up_in_any_order() -> None:
    images = random_images(6)
    whole = scored(*images)
    parts = []
    for rank in range(3):
        part = AveragePrecision()
        for image_id in range(rank, 6, 3):
            (ids, segments), found = images[image_id]
            part.accumulate(image_id + 1, ids, segments, found, TABLE)
        parts.append(part)
    total = AveragePrecision()
    for part in reversed(parts):
        total += part
    assert total.results(TABLE) == whole.results(TABLE)
    with pytest.raises(InputError, match="image 1: evaluated in more than one part"):
        total += parts[0]
    with pytest.raises(InputError, match="image 1: evaluated twice"):
        whole.accumulate(1, *images[0][0], images[0][1], TABLE)


def test_truth_of_the_real_sample(shared_data: Path) -> None:
    """Boxes, areas and crowds measured on the PNGs are those of the official JSON."""
    sample = json.loads((shared_data / "coco_sample/annotations/panoptic_val2017.json").read_text())
    table = Categories.from_coco(sample["categories"])
    things = {entry["id"] for entry in sample["categories"] if entry["isthing"]}
    crowds = 0
    for annotation in sample["annotations"]:
        ids = read_panoptic_png(shared_data / "coco_sample/annotations/panoptic_val2017" / annotation["file_name"])
        truth = truth_objects(ids, parse_segments(annotation["segments_info"], "sample"), table, annotation["image_id"])
        wanted = [info for info in annotation["segments_info"] if info["category_id"] in things]
        assert truth.categories.tolist() == [info["category_id"] for info in wanted]
        assert truth.areas.tolist() == [info["area"] for info in wanted]
        assert truth.boxes.tolist() == [info["bbox"] for info in wanted]
        assert truth.crowds.tolist() == [info["iscrowd"] == 1 for info in wanted]
        crowds += truth.crowds.sum()
    assert crowds == 4


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("boxes", np.nan),
        ("boxes", np.inf),
        ("boxes", -np.inf),
        ("scores", np.nan),
        ("scores", np.inf),
        ("masks", np.nan),
    ],
)
def test_detections_that_are_not_finite_are_left_out(place: str, value: float) -> None:
    """As panoptic_fusion and detectron2 do; a mask's cells that are no numbers are outside it."""
    found = detections((DOG, BOX, 0.9), (CAT, OTHER, 0.8))
    getattr(found, place)[0, 1, ...] = value
    report = scored((scene((3, BOX, 0), (7, OTHER, 0)), found)).results(TABLE)
    assert report["box"]["per_class"]["3"] == pytest.approx(1)
    assert report["mask"]["per_class"]["3"] == pytest.approx(1)
    if place != "masks":
        assert report["box"]["per_class"]["7"] == report["mask"]["per_class"]["7"] == 0
