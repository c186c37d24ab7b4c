"""What the columns of a comparison come to: PQ and identical pixels, by column, by class and by image."""

from __future__ import annotations

import statistics
from typing import Any

from pydantic import BaseModel

from upsnet.categories import Category
from upsnet.metrics.pq import GROUPS
from upsnet.parity.lockstep import Column, Comparison, ImageColumn

Score = dict[str, Any]  # what PQStat.results gives
LISTED = 20  # worst images


class Quality(BaseModel):
    """Means over the n classes of a group that occur; None where n is 0."""

    pq: float | None
    sq: float | None
    rq: float | None
    n: int


class ColumnFigures(BaseModel):
    """One runtime at one batch size, against the reference at that batch size."""

    runtime: str
    batch: int
    reference: bool  # it is the reference itself
    results: dict[str, Quality]  # by group: All, Things, Stuff
    difference: dict[str, float]  # of PQ, by group
    identical: float  # share of the pixels
    ms_per_image: float  # median
    identical_to_first_batch: float | None  # share of the pixels; None at the first batch size


class ClassFigures(Category):
    """One category. segments: in the truth. pq, sq, rq: the reference's, None where it occurs nowhere."""

    segments: int
    pq: float | None
    sq: float | None
    rq: float | None
    difference: float  # of PQ, the largest of all columns
    identical: float | None  # share of the reference's pixels, the least of all columns


class ImageFigures(BaseModel):
    """One image. identical: the least of all columns."""

    image_id: int | None  # the data set's; None of photos alone
    file_name: str
    identical: float
    columns: list[ImageColumn]


def column_figures(column: Column, scores: dict[Column, Score]) -> ColumnFigures:
    results, reference = scores[column]["results"], scores[column.reference]["results"]
    pixels = column.class_pixels.sum()
    # A group without segments (None) counts as 0: what a prediction alone puts there has PQ 0 as well.
    differences = {group: (results[group]["pq"] or 0.0) - (reference[group]["pq"] or 0.0) for group in GROUPS}
    return ColumnFigures(
        runtime=column.runtime,
        batch=column.batch,
        reference=column.reference is column,
        results=results,
        difference=differences,
        identical=float(column.class_identical.sum() / pixels),
        ms_per_image=statistics.median(column.milliseconds),
        identical_to_first_batch=None if column.first is column else float(column.identical_to_first / pixels),
    )


def class_figures(scores: dict[Column, Score]) -> list[ClassFigures]:
    figures = []
    for contiguous, category in enumerate(next(iter(scores)).categories):
        counts = {column: score["per_class"][str(category.id)] for column, score in scores.items()}
        first = next(iter(counts.values()))
        present = any(count["tp"] + count["fp"] + count["fn"] for count in counts.values())
        shares = [
            float(column.class_identical[contiguous] / column.class_pixels[contiguous])
            for column in scores
            if column.class_pixels[contiguous]
        ]
        figures.append(
            ClassFigures(
                **dict(category),
                segments=first["tp"] + first["fn"],
                **{key: first[key] if present else None for key in ("pq", "sq", "rq")},
                difference=max((counts[each]["pq"] - counts[each.reference]["pq"] for each in scores), key=abs),
                identical=min(shares, default=None),
            )
        )
    return sorted(figures, key=lambda each: (-abs(each.difference), _or(each.identical, 1.0), _or(each.pq, 2.0)))


def worst_images(comparison: Comparison) -> list[ImageFigures]:
    """The LISTED worst."""
    images = [
        ImageFigures(
            image_id=image.image_id,
            file_name=image.file_name,
            identical=min(each.identical for each in entries),
            columns=entries,
        )
        for image, *entries in zip(comparison.images, *(column.images for column in comparison.columns), strict=True)
    ]
    return sorted(images, key=lambda image: (image.identical, _or(image.columns[0].pq, 1.0)))[:LISTED]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
