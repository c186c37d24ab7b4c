"""Several runtimes over one data set in lockstep, compared image by image."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eval.compare import category_map, identical_pixels
from eval.report import Example, Shot
from upsnet.categories import Categories
from upsnet.datasets.folder import PanopticFolder, Record, check_categories, truth_result
from upsnet.datasets.parallel import chunked
from upsnet.errors import InputError
from upsnet.metrics.evaluation import predict_timed, score
from upsnet.metrics.pq import PQStat
from upsnet.result import PanopticResult
from upsnet.runtimes.predictor import Predictor

WORST, TYPICAL = 4, 4  # images that are kept for the report's pictures


class Column:
    """One runtime at one batch size: its PQ so far, and how far it agrees with the reference at that batch size."""

    def __init__(self, predictor: Predictor, batch: int, categories: int) -> None:
        self.predictor, self.batch = predictor, batch
        self.stat = PQStat()
        self.class_pixels = np.zeros(categories + 1, np.int64)  # by the reference's category; the last one is void
        self.class_identical = np.zeros(categories + 1, np.int64)
        self.identical_to_first = 0
        self.milliseconds: list[float] = []  # an image, one entry a call
        self.image_pq: list[float | None] = []  # one entry an image
        self.image_identical: list[float] = []

    @property
    def runtime(self) -> str:
        return self.predictor.name

    @property
    def identical(self) -> float:
        """Share of all pixels."""
        return float(self.class_identical.sum() / self.class_pixels.sum())

    def compare(self, result: PanopticResult, reference: PanopticResult) -> np.ndarray:
        """Counts one image; bool H x W of its identical pixels."""
        same = identical_pixels(reference, result)
        category = category_map(reference)  # -1, void, indexes the last entry
        self.class_pixels += np.bincount(category.ravel() % len(self.class_pixels), minlength=len(self.class_pixels))
        self.class_identical += np.bincount(category[same] % len(self.class_pixels), minlength=len(self.class_pixels))
        self.image_identical.append(float(same.mean()))
        return same


class Comparison(NamedTuple):
    columns: list[Column]  # batch size by batch size, the reference first in each
    examples: list[Example]  # worst images first


def run_lockstep(
    predictors: Sequence[Predictor], dataset: PanopticFolder, records: list[Record], batch_sizes: Sequence[int]
) -> Comparison:
    """Every record through every predictor (the first is the reference) at every batch size.

    Holds one group of images (the least common multiple of the batch sizes) and the report's few examples at a time.
    Raises InputError naming the image, or the runtime whose categories or resize rule are another's.
    """
    for predictor in predictors:
        check_categories(dataset, predictor.manifest)
        if predictor.manifest.resize != predictors[0].manifest.resize:
            raise InputError(
                f"{predictor.name} resizes photos to {predictor.manifest.resize}, {predictors[0].name} to "
                f"{predictors[0].manifest.resize}: these are not the same model; export again"
            )
    categories = predictors[0].manifest.categories_table
    columns = [Column(predictor, batch, len(categories)) for batch in batch_sizes for predictor in predictors]
    gallery = Gallery(len(records))
    with tqdm(total=len(records), desc="parity", unit="image", disable=None) as progress:
        for group in chunked(records, math.lcm(*batch_sizes)):
            photos, truths = zip(*(dataset.read(record) for record in group), strict=True)
            answers = [_predict(column, photos) for column in columns]
            for index, (record, photo, ids) in enumerate(zip(group, photos, truths, strict=True)):
                results = [answer[index] for answer in answers]
                shots = _compare(columns, record, ids, results, categories, len(predictors))
                gallery.offer(record, photo, ids, shots, categories)
            progress.update(len(group))
    return Comparison(columns, gallery.examples())


def _predict(column: Column, photos: Sequence[np.ndarray]) -> list[PanopticResult]:
    results = []
    for start in range(0, len(photos), column.batch):
        part = photos[start : start + column.batch]
        answer, milliseconds = predict_timed(column.predictor, part)
        column.milliseconds.append(milliseconds / len(part))
        results += [prediction.result for prediction in answer]
    return results


def _compare(
    columns: list[Column],
    record: Record,
    ids: np.ndarray,
    results: list[PanopticResult],
    categories: Categories,
    runtimes: int,
) -> list[Shot]:
    """Counts one image in every column -> a Shot for each."""
    shots = []
    for index, (column, result) in enumerate(zip(columns, results, strict=True)):
        image_stat = PQStat()
        score(image_stat, record, ids, result, categories)
        column.stat += image_stat
        pq = image_stat.results(categories)["results"]["All"]["pq"]
        column.image_pq.append(pq)
        reference = index - index % runtimes
        same = column.compare(result, results[reference])
        column.identical_to_first += int(identical_pixels(results[index % runtimes], result).sum())
        shots.append(Shot(column.runtime, column.batch, result, pq, None if index == reference else same))
    return shots


class Gallery:
    """Keeps the few images that the report shows: the worst so far, and typical ones spread over the set."""

    def __init__(self, images: int) -> None:
        self._typical = {int(index) for index in np.linspace(0, images - 1, min(TYPICAL, images))}
        self._worst: list[tuple[tuple[float, float, int], Example]] = []
        self._kept: list[Example] = []
        self._seen = 0

    def offer(
        self, record: Record, photo: np.ndarray, ids: np.ndarray, shots: list[Shot], categories: Categories
    ) -> None:
        """Worst: fewest identical pixels, then lowest PQ of the reference, then first."""
        identical = min((float(shot.identical.mean()) for shot in shots if shot.identical is not None), default=1.0)
        pq = 1.0 if shots[0].pq is None else shots[0].pq
        badness = (-identical, -pq, -self._seen)
        typical = self._seen in self._typical
        self._seen += 1
        if not typical and len(self._worst) == WORST and badness <= self._worst[0][0]:
            return
        truth = truth_result(record, ids, categories)
        example = Example(record.file_name, "typical", photo, truth, _one_each(shots))
        if typical:
            self._kept.append(example)
        heapq.heappush(self._worst, (badness, example._replace(kind="worst")))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    def examples(self) -> list[Example]:
        worst = [example for _, example in sorted(self._worst, key=lambda item: item[0], reverse=True)]
        shown = {example.file_name for example in worst}
        return worst + [example for example in self._kept if example.file_name not in shown]


def _one_each(shots: list[Shot]) -> list[Shot]:
    """Of each runtime, the batch size at which it differs most (the reference: the first)."""
    chosen: dict[str, Shot] = {}
    for shot in shots:
        best = chosen.get(shot.runtime)
        if best is None or (
            shot.identical is not None and best.identical is not None and shot.identical.sum() < best.identical.sum()
        ):
            chosen[shot.runtime] = shot
    return list(chosen.values())
