"""Panoptic quality (Kirillov et al., CVPR 2019, arXiv:1801.00868) from id maps, equal to the official panopticapi.

`stat = PQStat(); stat.accumulate(...)` for each image, then `stat.results(categories)`.

Official behaviour that surprises is kept, with a warning that names the image: the ground truth's area comes from its
JSON, of several crowds of one category only the last counts, of entries with the same id the last counts. Where the
official figures are nonsense (an IoU above 1, maps of different sizes, a ground-truth segment that is void) or where
the official code fails, InputError names the image and the cause.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upsnet.categories import Categories
from upsnet.datasets.segments import Infos, SegmentInfo, parse_segments
from upsnet.errors import InputError
from upsnet.json_values import complaint, flag, integer
from upsnet.metrics.overlaps import overlaps

VOID = 0
IOU_STEP = 2.0**-53
GROUPS: dict[str, tuple[bool, ...]] = {"All": (True, False), "Things": (True,), "Stuff": (False,)}

Overlaps = dict[tuple[int, int], int]  # (ground-truth id, predicted id) -> pixels
Segments = Iterable[SegmentInfo]


@dataclass
class Count:
    """What one category has gathered. Sums are exact: in whatever order parts are added, the figures are the same."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_steps: int = 0  # a match's IoU lies in (.5, 1], where a float64 is a multiple of IOU_STEP

    def __iadd__(self, other: Count) -> Count:
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.iou_steps += other.iou_steps
        return self

    @property
    def iou(self) -> float:
        """The sum over the matches."""
        return self.iou_steps * IOU_STEP

    def figures(self) -> dict[str, float]:
        """PQ = SQ * RQ, SQ = mean IoU of the matches, RQ = F1 of the matching; all 0 without any segment."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {
            "pq": self.iou / weight if weight else 0.0,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / weight if weight else 0.0,
        }


class PQStat:
    """Gathers counts image by image. `warnings` lists, by image, what official rules treat in a surprising way."""

    def __init__(self) -> None:
        self.counts: defaultdict[int, Count] = defaultdict(Count)
        self.predicted: dict[int, str] = {}  # category -> the first image that predicts it
        self.images = 0
        self.warnings: list[str] = []

    def __iadd__(self, other: PQStat) -> PQStat:
        for category, count in other.counts.items():
            self.counts[category] += count
        self.predicted = other.predicted | self.predicted
        self.images += other.images
        self.warnings += other.warnings
        return self

    def accumulate(
        self,
        gt_ids: np.ndarray,
        gt_segments_info: Infos,
        pred_ids: np.ndarray,
        pred_segments_info: Infos,
        image: object = None,
    ) -> None:
        """Add one image: two integer H x W id maps (0 = void) and their COCO `segments_info` lists.

        Ground truth needs id, category_id, iscrowd (without it 0 is taken, with a warning) and, where a match asks for
        it, area; predictions id and category_id. `image` names it in errors and warnings (default: its position).
        Raises InputError, and adds nothing then.
        """
        name = f"image {self.images if image is None else image}"
        warnings: list[str] = []
        truth = parse_segments(gt_segments_info, f"{name}: ground truth", warnings=warnings)
        found = parse_segments(pred_segments_info, f"{name}: prediction", truth=False)
        self.add(gt_ids, truth, pred_ids, found, image)
        self.warnings += warnings

    def add(
        self, gt_ids: np.ndarray, truth: Segments, pred_ids: np.ndarray, found: Segments, image: object = None
    ) -> None:
        """`accumulate`, of segments that are parsed already."""
        score = _ImageScore(f"image {self.images if image is None else image}")
        score.run(gt_ids, truth, pred_ids, found)
        for category, count in score.counts.items():
            self.counts[category] += count
        self.predicted = score.predicted | self.predicted
        self.images += 1
        self.warnings += score.warnings

    def results(self, categories: Categories | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """-> {"results": {group: pq, sq, rq, n}, "per_class": {id: pq, sq, rq, tp, fp, fn, iou}}, all fractions.

        Groups average the n categories that have any segment; without one the figures are None. Raises InputError for
        predictions of a category outside `categories`; ground truth outside them is left out, as in panopticapi.
        """
        isthing = things_by_id(categories)
        for category, image in self.predicted.items():
            if category not in isthing:
                raise InputError(f"{image}: the prediction has the unknown category_id {category}")
        counts = {category: self.counts.get(category, Count()) for category in isthing}
        figures = {category: count.figures() for category, count in counts.items()}
        present = [category for category, count in counts.items() if count.tp + count.fp + count.fn]
        return {
            "results": {
                group: _mean([figures[category] for category in present if isthing[category] in members])
                for group, members in GROUPS.items()
            },
            "per_class": {
                str(category): {**figures[category], "tp": count.tp, "fp": count.fp, "fn": count.fn, "iou": count.iou}
                for category, count in counts.items()
            },
        }


def _mean(figures: list[dict[str, float]]) -> dict[str, float | None]:
    n = len(figures)
    means = {key: sum(each[key] for each in figures) / n if n else None for key in ("pq", "sq", "rq")}
    return {**means, "n": n}


def things_by_id(categories: Categories | Iterable[Mapping[str, Any]]) -> dict[int, bool]:
    """Category id -> is it a thing. Of entries with the same id the last counts, as in panopticapi."""
    entries = categories.to_coco() if isinstance(categories, Categories) else categories
    if not isinstance(entries, Iterable):
        raise InputError("categories: expected a list")
    table = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "isthing" not in entry:
            raise InputError(f"categories[{index}]: expected an object with 'id' and 'isthing'")
        isthing = flag(entry["isthing"])
        if isthing is None:
            raise InputError(f"categories[{index}]: {complaint(entry, 'isthing', '0 or 1')}")
        table[integer(entry, "id", f"categories[{index}]")] = isthing == 1
    return table


def truth_warnings(segments_info: Infos, image: object, ids: np.ndarray | None = None) -> list[str]:
    """What `accumulate` would warn of in a ground truth; without its id map H x W, what its JSON shows."""
    score = _ImageScore(f"image {image}")
    truth = parse_segments(segments_info, f"{score.name}: ground truth", warnings=score.warnings)
    gt = score._by_id(truth, "ground truth")
    if ids is not None:
        found, _, pixels = overlaps(ids, ids)
        score._check_ground_truth(gt, Counter(dict(zip(found.tolist(), pixels.tolist(), strict=True))))
    score._crowds(gt)
    return score.warnings


# One image


class _ImageScore:
    """The official rules on one image. `name` starts every error and warning."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: defaultdict[int, Count] = defaultdict(Count)
        self.predicted: dict[int, str] = {}
        self.warnings: list[str] = []

    def run(self, gt_ids: np.ndarray, truth: Segments, pred_ids: np.ndarray, found: Segments) -> None:
        gt, pred = self._by_id(truth, "ground truth"), self._by_id(found, "prediction")
        self.predicted = {segment.category_id: self.name for segment in pred.values()}
        overlaps = self._overlaps(gt_ids, pred_ids)
        gt_area: Counter[int] = Counter()
        pred_area: Counter[int] = Counter()
        for (gt_id, pred_id), pixels in overlaps.items():
            gt_area[gt_id] += pixels
            pred_area[pred_id] += pixels
        self._check_prediction(pred, pred_area)
        self._check_ground_truth(gt, gt_area)
        matched_gt, matched_pred = self._match(gt, pred, pred_area, overlaps)
        unmatched_gt = {id: segment for id, segment in gt.items() if id not in matched_gt}
        unmatched_pred = {id: segment for id, segment in pred.items() if id not in matched_pred}
        self._count_unmatched(unmatched_gt, unmatched_pred, pred_area, overlaps)

    def _warn(self, message: str) -> None:
        self.warnings.append(f"{self.name}: {message}")

    def _by_id(self, segments: Segments, side: str) -> dict[int, SegmentInfo]:
        """In the order of first appearance and with the values of the last, like panopticapi's dict."""
        table: dict[int, SegmentInfo] = {}
        for segment in segments:
            if segment.id in table:
                self._warn(f"{side} lists segment {segment.id} more than once; the last entry counts")
            table[segment.id] = segment
        return table

    def _overlaps(self, gt_ids: np.ndarray, pred_ids: np.ndarray) -> Overlaps:
        """Pixels of every (ground truth, prediction) pair of ids that meets, sorted by ids."""
        if gt_ids.shape != pred_ids.shape:
            raise InputError(
                f"{self.name}: the prediction is {_size(pred_ids)} pixels but the ground truth {_size(gt_ids)}; "
                f"predictions must have the exact size of the original image"
            )
        for side, ids in (("ground truth", gt_ids), ("prediction", pred_ids)):
            if not np.issubdtype(ids.dtype, np.integer):
                raise InputError(f"{self.name}: the {side}'s ids are {ids.dtype}, not integers")
        try:
            gt, pred, pixels = overlaps(gt_ids, pred_ids)
        except ValueError as error:
            raise InputError(f"{self.name}: segment ids: {error}") from None
        return dict(zip(zip(gt.tolist(), pred.tolist(), strict=True), pixels.tolist(), strict=True))

    def _check_prediction(self, pred: dict[int, SegmentInfo], pred_area: Counter[int]) -> None:
        unlisted = sorted(pred_area.keys() - pred.keys() - {VOID})
        if unlisted:
            raise InputError(f"{self.name}: the prediction's PNG has segment ids {_few(unlisted)} that its JSON lacks")
        absent = [id for id in pred if id not in pred_area]
        if absent:
            raise InputError(f"{self.name}: the prediction's JSON has segment ids {_few(absent)} that its PNG lacks")
        if VOID in pred:
            self._warn("the prediction lists id 0, which is void, as a segment; it counts as one, as in panopticapi")

    def _check_ground_truth(self, gt: dict[int, SegmentInfo], gt_area: Counter[int]) -> None:
        unlisted = sorted(gt_area.keys() - gt.keys() - {VOID})
        if unlisted:
            self._warn(
                f"the ground truth's PNG has ids {_few(unlisted)} that its JSON lacks; "
                f"they are neither segments nor void"
            )
        absent = [id for id in gt if id not in gt_area]
        if absent:
            self._warn(f"the ground truth's JSON has ids {_few(absent)} that its PNG lacks; they count as missed")
        wrong = [
            f"{id} (area {segment.area} in the JSON, {gt_area[id]} pixels in the PNG)"
            for id, segment in gt.items()
            if id in gt_area and not segment.iscrowd and segment.area not in (None, gt_area[id])
        ]
        if wrong:
            self._warn(f"the areas of ground-truth segments {_few(wrong)} disagree; the JSON counts, as in panopticapi")

    def _match(
        self, gt: dict[int, SegmentInfo], pred: dict[int, SegmentInfo], pred_area: Counter[int], overlaps: Overlaps
    ) -> tuple[set[int], set[int]]:
        """Match what overlaps with IoU > .5 in one category; void is no part of the union. -> the ids of both sides."""
        matched_gt, matched_pred = set(), set()
        for (gt_id, pred_id), intersection in overlaps.items():
            if gt_id not in gt or pred_id not in pred:
                continue
            target = gt[gt_id]
            if target.iscrowd or target.category_id != pred[pred_id].category_id:
                continue
            void = overlaps.get((VOID, pred_id), 0)
            union = pred_area[pred_id] + self._listed_area(gt_id, target) - intersection - void
            if union < intersection:
                raise InputError(
                    f"{self.name}: the area {target.area} of ground-truth segment {gt_id} is wrong: it gives an IoU "
                    f"above 1; write the pixel count of the PNG"
                )
            iou = intersection / union
            if iou > 0.5:
                self.counts[target.category_id].tp += 1
                self.counts[target.category_id].iou_steps += int(iou / IOU_STEP)
                matched_gt.add(gt_id)
                matched_pred.add(pred_id)
        return matched_gt, matched_pred

    def _listed_area(self, id: int, segment: SegmentInfo) -> float:
        if segment.area is None:
            raise InputError(f"{self.name}: ground-truth segment {id} has no area; write its pixel count")
        return segment.area

    def _count_unmatched(
        self, gt: dict[int, SegmentInfo], pred: dict[int, SegmentInfo], pred_area: Counter[int], overlaps: Overlaps
    ) -> None:
        """Misses, and false positives unless more than half lies on void and on the crowd of the same category."""
        for segment in gt.values():
            if not segment.iscrowd:
                self.counts[segment.category_id].fn += 1
        crowds = self._crowds(gt)
        for pred_id, segment in pred.items():
            ignored = overlaps.get((VOID, pred_id), 0)
            if segment.category_id in crowds:
                ignored += overlaps.get((crowds[segment.category_id], pred_id), 0)
            if ignored / pred_area[pred_id] <= 0.5:
                self.counts[segment.category_id].fp += 1

    def _crowds(self, gt: dict[int, SegmentInfo]) -> dict[int, int]:
        """Category -> the last crowd of it."""
        crowds: defaultdict[int, list[int]] = defaultdict(list)
        for id, segment in gt.items():
            if segment.iscrowd:
                crowds[segment.category_id].append(id)
        for category, ids in crowds.items():
            if len(ids) > 1:
                self._warn(
                    f"the ground truth has {len(ids)} crowds of category {category}; only the last, segment {ids[-1]}, "
                    f"counts, as in panopticapi"
                )
        return {category: ids[-1] for category, ids in crowds.items()}


def _size(ids: np.ndarray) -> str:
    return " x ".join(str(side) for side in ids.shape)


def _few(ids: Sequence[object]) -> str:
    return ", ".join(str(id) for id in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
