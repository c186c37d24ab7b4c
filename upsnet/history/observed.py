"""What is gathered while the images of an evaluation go by: quality by class, void, each image's PQ, the worst ones."""

from __future__ import annotations

import statistics
from bisect import bisect
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.categories import Categories
from upsnet.datasets.folder import Record, truth_result
from upsnet.draw import overlay
from upsnet.history.evaluation import ClassQuality, Evaluation, Spread, Void, WorstImage
from upsnet.metrics.evaluation import Answer, Partial
from upsnet.metrics.overlaps import overlaps
from upsnet.metrics.pq import VOID, PQStat
from upsnet.pictures import SIDE, embed, reduced
from upsnet.result import PanopticResult

WORST = 6
VOID_BINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # upper edges of an image's share of void; the first bin: none


class Bad(NamedTuple):
    """One of the worst images, at most SIDE pixels a side."""

    pq: float
    record: Record
    photo: np.ndarray
    ids: np.ndarray  # the truth's
    found: PanopticResult


class Picture(NamedTuple):
    """The same drawn, as data: addresses."""

    pq: float
    image_id: int
    file_name: str
    photo: str
    truth: str
    found: str


class Observed:
    """`add` takes images; `drawn` makes it small enough for another process; `a += b` adds what another has drawn."""

    def __init__(self, categories: Categories, worst: int = WORST) -> None:
        self.categories, self.most = categories, worst
        self.pq = PQStat()
        self.images = 0
        self.image_pqs: list[float] = []
        self.pixels: Counter[int | None] = Counter()  # of the truth, by category id; None is its void
        self.void: Counter[int | None] = Counter()  # of them those that the prediction leaves void
        self.predicted_bins, self.truth_bins = ([0] * len(VOID_BINS) for _ in range(2))
        self.pictures: list[Picture] = []
        self._bad: list[Bad] = []

    def add(self, answer: Answer, alone: Partial) -> None:
        """One image, and what it scored alone."""
        assert alone.pq is not None
        self.pq += alone.pq
        self.images += 1
        self._add_void(answer)
        quality = alone.pq.results(self.categories)["results"]["All"]["pq"]
        if quality is None:  # neither truth nor prediction has a segment that counts
            return
        self.image_pqs.append(quality)
        key = (quality, answer.record.image_id)
        if len(self._bad) < self.most or (self._bad and key < _key(self._bad[-1])):
            self._bad.insert(bisect(self._bad, key, key=_key), _bad(quality, answer))
            del self._bad[self.most :]

    def _add_void(self, answer: Answer) -> None:
        category: dict[int, int | None] = {segment.id: segment.category_id for segment in answer.record.segments}
        category[VOID] = None
        void = 0
        shared = overlaps(answer.ids, answer.prediction.result.ids)
        for truth, found, pixels in zip(*(each.tolist() for each in shared), strict=True):
            self.pixels[category[truth]] += pixels
            if found == VOID:
                self.void[category[truth]] += pixels
                void += pixels
        self.predicted_bins[_bin(void / answer.ids.size)] += 1
        self.truth_bins[_bin(float((answer.ids == VOID).mean()))] += 1

    def drawn(self) -> Observed:
        """This, with the worst images drawn: JPEGs in place of arrays."""
        for bad in self._bad:
            truth = truth_result(bad.record, bad.ids, self.categories)
            pictures = [
                embed(bad.photo),
                embed(overlay(bad.photo, truth, self.categories, scores=False)),
                embed(overlay(bad.photo, bad.found, self.categories)),
            ]
            name = bad.record.file_name.encode("utf-8", "backslashreplace").decode()  # no text, for one
            self.pictures.append(Picture(bad.pq, bad.record.image_id, name, *pictures))
        self._bad = []
        return self

    def __iadd__(self, other: Observed) -> Observed:
        self.pq += other.pq
        self.images += other.images
        self.image_pqs += other.image_pqs
        self.pixels += other.pixels
        self.void += other.void
        self.predicted_bins = [a + b for a, b in zip(self.predicted_bins, other.predicted_bins, strict=True)]
        self.truth_bins = [a + b for a, b in zip(self.truth_bins, other.truth_bins, strict=True)]
        self.pictures = sorted([*self.pictures, *other.pictures], key=lambda each: each[:2])[: self.most]
        return self

    def spread(self) -> Spread | None:
        """Of the images' PQ."""
        if not (values := sorted(self.image_pqs)):  # the same sum in whatever order they came
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return Spread(images=len(values), mean=statistics.fmean(values), deviation=deviation)

    def evaluation(self, step: int, training: Spread | None) -> Evaluation:
        """A line of evaluations.jsonl."""
        figures = self.pq.results(self.categories)["per_class"]
        classes = [
            ClassQuality.model_validate(
                each.model_dump()
                | {key: figures[str(each.id)][key] for key in ("pq", "sq", "rq", "tp", "fp", "fn")}
                | {"pixels": self.pixels[each.id], "void": self.void[each.id]}
            )
            for each in self.categories
        ]
        void = Void(
            pixels=self.pixels.total(),
            predicted=self.void.total(),
            truth=self.pixels[None],
            both=self.void[None],
            predicted_bins=self.predicted_bins,
            truth_bins=self.truth_bins,
        )
        worst = [WorstImage(image_id=each.image_id, file_name=each.file_name, pq=each.pq) for each in self.pictures]
        return Evaluation(
            step=step,
            images=self.images,
            classes=classes,
            void=void,
            validation=self.spread(),
            training=training,
            worst=worst,
        )


def _bin(share: float) -> int:
    return next(place for place, edge in enumerate(VOID_BINS) if share <= edge)


def _key(bad: Bad) -> tuple[float, int]:
    return bad.pq, bad.record.image_id


def _bad(quality: float, answer: Answer) -> Bad:
    found = answer.prediction.result
    ids, small = (reduced(each, SIDE, Image.Resampling.NEAREST) for each in (answer.ids, found.ids))
    return Bad(quality, answer.record, reduced(answer.photo), ids, found._replace(ids=small))
