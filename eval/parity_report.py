"""parity.json: its keys, and how each is computed from what the runtimes gave."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from eval.figures import share, title
from eval.lockstep import Column, ImageColumn
from upsnet.categories import Category
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.machine import machine_facts, package_versions
from upsnet.manifest import Precision
from upsnet.metrics.pq import GROUPS
from upsnet.report import Report

Score = dict[str, Any]  # what PQStat.results gives
INT8 = {"max_pq_difference": 0.005, "min_identical": 0.98}  # what eight bits keep to; docs/precision.md
ROUNDED: tuple[Precision, ...] = ("int8", "fp8", "mixed")
LISTED = 20  # worst images and classes in parity.json


@dataclass(frozen=True)
class Limits:
    """What "equal" means; all fractions."""

    max_pq_difference: float = 0.001  # of PQ for all, things and stuff alike
    min_identical: float = 0.999  # share of the pixels
    min_pq: float = 0.0  # what PQ of all classes must reach in every runtime


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

    image_id: int
    file_name: str
    identical: float
    columns: list[ImageColumn]


class Dataset(BaseModel):
    """What the figures were measured on."""

    gt_json: str
    images: int


class Parity(Report):
    """Are the runtimes equal, and all figures behind the answer."""

    equal: bool
    reasons: list[str]  # why not
    limits: Limits
    reference: str
    runtimes: list[str]
    columns: list[ColumnFigures]  # batch size by batch size, the reference first
    per_class: list[ClassFigures]  # largest difference first, then fewest identical pixels, then lowest PQ
    worst_images: list[ImageFigures]  # fewest identical pixels first, then lowest PQ of the reference
    worst_classes: list[str]  # those that differ
    lowest_classes: list[str]  # by PQ
    warnings: list[str]
    created: str
    model: str
    dataset: Dataset
    machine: dict[str, str | int]
    versions: dict[str, str]


def summarize(
    columns: list[Column], dataset: PanopticFolder, records: list[Record], limits: Limits, facts: dict[str, str | int]
) -> Parity:
    """The verdict on what `run_lockstep` gathered from `records` of the data set."""
    manifest = columns[0].predictor.manifest
    scores = {column: column.stat.results(column.categories) for column in columns}
    figures = [_column_figures(column, scores) for column in columns]
    precisions = [column.predictor.manifest.precision for column in columns]
    reasons = [reason for each in zip(figures, precisions, strict=True) for reason in _reasons(*each, limits)]
    classes = _class_figures(scores)
    present = [(each.pq, each.name) for each in classes if each.pq is not None]
    return Parity(
        equal=not reasons,
        reasons=reasons,
        limits=limits,
        reference=columns[0].runtime,
        runtimes=list(dict.fromkeys(column.runtime for column in columns)),
        columns=figures,
        per_class=classes,
        worst_images=_worst_images(columns, records),
        worst_classes=[each.name for each in classes if each.difference or each.identical not in (None, 1.0)][:LISTED],
        lowest_classes=[name for _, name in sorted(present, key=lambda each: each[0])[:3]],
        warnings=columns[0].stat.warnings,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        model=manifest.name,
        dataset=Dataset(gt_json=str(dataset.split.json_file), images=len(records)),
        machine=machine_facts() | facts,
        versions={f"export: {key}": value for key, value in manifest.versions.items()} | package_versions(),
    )


def _column_figures(column: Column, scores: dict[Column, Score]) -> ColumnFigures:
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


def _reasons(figures: ColumnFigures, precision: Precision, limits: Limits) -> list[str]:
    """Why this column is not equal to the reference, in words; [] when it is."""
    where = f"{title(figures.runtime)}{f' {precision}' * (precision in ROUNDED)}, batch {figures.batch}"
    allowed, needed = f"{100 * limits.max_pq_difference:g}", f"{100 * limits.min_identical:g} %"
    if precision in ROUNDED and limits == Limits(min_pq=limits.min_pq):
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in INT8.items())
        allowed, needed = (f"{limit} (of eight bits expect less: {flags})" for limit in (allowed, needed))
    reasons = [
        f"{where}: PQ ({group.lower()}) differs by {100 * difference:+.3f} points, allowed {allowed}"
        for group, difference in figures.difference.items()
        if not abs(difference) <= limits.max_pq_difference
    ]
    if not figures.identical >= limits.min_identical:
        reasons.append(f"{where}: {share(figures.identical)} of the pixels identical, needed {needed}")
    pq = figures.results["All"].pq
    if not (pq or 0.0) >= limits.min_pq:
        found = "no PQ, as no segment is there" if pq is None else f"PQ {100 * pq:.1f}"
        reasons.append(f"{where}: {found}, needed {100 * limits.min_pq:g}")
    return reasons


def _class_figures(scores: dict[Column, Score]) -> list[ClassFigures]:
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


def _worst_images(columns: list[Column], records: list[Record]) -> list[ImageFigures]:
    images = [
        ImageFigures(
            image_id=record.image_id,
            file_name=record.file_name,
            identical=min(each.identical for each in entries),
            columns=entries,
        )
        for record, *entries in zip(records, *(column.images for column in columns), strict=True)
    ]
    return sorted(images, key=lambda image: (image.identical, _or(image.columns[0].pq, 1.0)))[:LISTED]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
