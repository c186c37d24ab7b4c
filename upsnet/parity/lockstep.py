"""Several predictors over the same photos in lockstep, compared image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from upsnet.categories import Categories, differences
from upsnet.datasets.folder import check_categories
from upsnet.datasets.parallel import chunked
from upsnet.errors import InputError
from upsnet.metrics.evaluation import predict_timed, score
from upsnet.metrics.pq import PQStat
from upsnet.parity.photos import Photos, Shown
from upsnet.parity.pixels import category_map, identical_pixels
from upsnet.result import PanopticResult
from upsnet.runtimes.predictor import Predictor

WORST, TYPICAL = 4, 4  # images that are kept for the report's pictures


@dataclass(frozen=True)
class ImageColumn:
    """One image in one column."""

    runtime: str
    batch: int
    pq: float | None
    identical: float  # share of its pixels


class Shot(NamedTuple):
    """What one runtime made of an example; `same` bool H x W: identical to the reference's."""

    figures: ImageColumn
    result: PanopticResult
    same: np.ndarray


class Example(NamedTuple):
    """One image of the report's grid. kind: "worst" or "typical"."""

    file_name: str
    kind: str
    photo: np.ndarray
    truth: PanopticResult | None
    shots: list[Shot]  # the reference's first


class Column:
    """One runtime at one batch size: its PQ so far, and how far it agrees with other columns."""

    def __init__(self, predictor: Predictor, batch: int) -> None:
        self.predictor, self.batch = predictor, batch
        self.reference = self  # or the first runtime at the same batch size
        self.first = self  # or the same runtime at the first batch size
        self.stat = PQStat()
        self.categories = predictor.manifest.categories_table
        self.class_pixels = np.zeros(len(self.categories) + 1, np.int64)  # by the reference's category, void last
        self.class_identical = np.zeros_like(self.class_pixels)
        self.identical_to_first = 0  # pixels
        self.milliseconds: list[float] = []  # an image, one entry a call
        self.images: list[ImageColumn] = []

    @property
    def runtime(self) -> str:
        return self.predictor.name

    def compare(self, result: PanopticResult, reference: PanopticResult) -> np.ndarray:
        """Counts one image; bool H x W of its identical pixels."""
        same = identical_pixels(reference, result)
        category = category_map(reference)  # -1, void, indexes the last entry
        self.class_pixels += np.bincount(category.ravel() % len(self.class_pixels), minlength=len(self.class_pixels))
        self.class_identical += np.bincount(category[same] % len(self.class_pixels), minlength=len(self.class_pixels))
        return same


class Image(NamedTuple):
    """One photo that was compared."""

    image_id: int | None  # the data set's; None of photos alone
    file_name: str


class Comparison(NamedTuple):
    columns: list[Column]  # batch size by batch size, the reference first in each
    images: list[Image]
    examples: list[Example]  # worst images first


class PredictionFailed(InputError):
    """A predictor gave no answer, or none that can be read; `runtime` is its name."""

    def __init__(self, runtime: str, photos: str, cause: InputError) -> None:
        super().__init__(f"{runtime}: {photos}: {cause}")
        self.runtime, self.photos, self.cause = runtime, photos, cause


def run_lockstep(
    predictors: Sequence[Predictor],
    photos: Photos,
    batch_sizes: Sequence[int] = (1,),
    *,
    other_size: bool = False,
    title: str = "parity",
) -> Comparison:
    """Every photo through every predictor (the first is the reference) at every batch size.

    Holds one group of images (the least common multiple of the batch sizes) and the report's few examples at a time.
    other_size: predictors may resize photos by other rules than the reference. title: of the progress bar.
    Raises InputError naming the image, or the runtime whose categories or resize rule are another's, and
    PredictionFailed naming runtime and photo.
    """
    reference = predictors[0].manifest
    for predictor in predictors:
        if photos.dataset is not None:
            check_categories(photos.dataset, predictor.manifest)
        elif found := differences(
            predictor.manifest.categories_table, reference.categories_table, predictor.name, predictors[0].name
        ):
            raise InputError(f"{predictor.name} and {predictors[0].name} have other categories: {found}")
        if predictor.manifest.resize != reference.resize and not other_size:
            raise InputError(
                f"{predictor.name} resizes photos to {predictor.manifest.resize}, {predictors[0].name} to "
                f"{reference.resize}: these are not the same model; export again"
            )
    columns = [Column(predictor, batch) for batch in batch_sizes for predictor in predictors]
    for index, column in enumerate(columns):
        column.reference = columns[index - index % len(predictors)]
        column.first = columns[index % len(predictors)]
    gallery, images = Gallery(len(photos), reference.categories_table), []
    with tqdm(total=len(photos), desc=title, unit="image", disable=None) as progress:
        for group in chunked(range(len(photos)), math.lcm(*batch_sizes)):
            shown = [photos.read(index) for index in group]
            answers = {column: _predict(column, shown, group[0], len(photos)) for column in columns}
            for index, each in enumerate(shown):
                shots = _compare({column: answer[index] for column, answer in answers.items()}, each)
                images.append(Image(each.image_id, each.name))
                gallery.offer(each, shots)
            progress.update(len(group))
    return Comparison(columns, images, gallery.examples())


def _predict(column: Column, shown: Sequence[Shown], before: int, total: int) -> list[PanopticResult]:
    """The answers for a group of photos, of `total` the one number `before` + 1 and those after it."""
    results = []
    for start in range(0, len(shown), column.batch):
        part = shown[start : start + column.batch]
        try:
            answer, milliseconds = predict_timed(column.predictor, [each.photo for each in part])
        except InputError as error:
            first, last = before + start + 1, before + start + len(part)
            which = f"photo {first}" if first == last else f"photos {first} to {last}"
            name = ", ".join(each.name for each in part)
            raise PredictionFailed(column.runtime, f"{which} of {total} ({name})", error) from error
        column.milliseconds.append(milliseconds / len(part))
        results += [prediction.result for prediction in answer]
    return results


def _compare(results: dict[Column, PanopticResult], shown: Shown) -> list[Shot]:
    """Counts one image in every column -> a Shot for each."""
    shots = []
    for column, result in results.items():
        pq = None
        if shown.truth is not None:
            image_stat = PQStat()
            score(image_stat, shown.truth.record, shown.truth.ids, result, column.categories)
            column.stat += image_stat
            pq = image_stat.results(column.categories)["results"]["All"]["pq"]
        same = column.compare(result, results[column.reference])
        column.images.append(ImageColumn(column.runtime, column.batch, pq, float(same.mean())))
        column.identical_to_first += int(identical_pixels(results[column.first], result).sum())
        shots.append(Shot(column.images[-1], result, same))
    return shots


class Gallery:
    """Keeps the few images that the report shows: the worst so far, and typical ones spread over the set."""

    def __init__(self, images: int, categories: Categories) -> None:
        self._categories = categories
        self._typical = {int(index) for index in np.linspace(0, images - 1, min(TYPICAL, images))}
        self._worst: list[tuple[tuple[float, float, int], Example]] = []  # worst first
        self._kept: list[Example] = []
        self._seen = 0

    def offer(self, shown: Shown, shots: list[Shot]) -> None:
        """Worst: fewest identical pixels, then lowest PQ of the reference, then first."""
        identical, pq = min(shot.figures.identical for shot in shots), shots[0].figures.pq
        place = (identical, 1.0 if pq is None else pq, self._seen)
        typical = self._seen in self._typical
        self._seen += 1
        if not typical and len(self._worst) == WORST and place >= self._worst[-1][0]:
            return
        truth = None if shown.truth is None else shown.truth.as_result(self._categories)
        example = Example(shown.name, "typical", shown.photo, truth, _one_each(shots))
        if typical:
            self._kept.append(example)
        self._worst = sorted([*self._worst, (place, example._replace(kind="worst"))])[:WORST]

    def examples(self) -> list[Example]:
        worst = [example for _, example in self._worst]
        shown = {example.file_name for example in worst}
        return worst + [example for example in self._kept if example.file_name not in shown]


def _one_each(shots: list[Shot]) -> list[Shot]:
    """Of each runtime, the batch size at which it differs most (the reference: the first)."""
    runtimes = dict.fromkeys(shot.figures.runtime for shot in shots)
    of_one = ([shot for shot in shots if shot.figures.runtime == runtime] for runtime in runtimes)
    return [min(some, key=lambda shot: shot.figures.identical) for some in of_one]
