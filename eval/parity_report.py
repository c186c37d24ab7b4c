"""parity.json: its keys, and how each is computed from what the runtimes gave."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from upsnet.machine import machine_facts, package_versions
from upsnet.parity.figures import (
    LISTED,
    ClassFigures,
    ColumnFigures,
    ImageFigures,
    class_figures,
    column_figures,
    worst_images,
)
from upsnet.parity.figures import Quality as Quality
from upsnet.parity.limits import Limits, reasons_of
from upsnet.parity.lockstep import Comparison
from upsnet.report import Report


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


def summarize(comparison: Comparison, gt_json: str, limits: Limits, facts: dict[str, str | int]) -> Parity:
    """The verdict on what `run_lockstep` gathered from the data set `gt_json`."""
    columns = comparison.columns
    manifest = columns[0].predictor.manifest
    scores = {column: column.stat.results(column.categories) for column in columns}
    figures = [column_figures(column, scores) for column in columns]
    precisions = [column.predictor.manifest.precision for column in columns]
    reasons = [reason for each in zip(figures, precisions, strict=True) for reason in reasons_of(*each, limits)]
    classes = class_figures(scores)
    present = [(each.pq, each.name) for each in classes if each.pq is not None]
    return Parity(
        equal=not reasons,
        reasons=reasons,
        limits=limits,
        reference=columns[0].runtime,
        runtimes=list(dict.fromkeys(column.runtime for column in columns)),
        columns=figures,
        per_class=classes,
        worst_images=worst_images(comparison),
        worst_classes=[each.name for each in classes if each.difference or each.identical not in (None, 1.0)][:LISTED],
        lowest_classes=[name for _, name in sorted(present, key=lambda each: each[0])[:3]],
        warnings=columns[0].stat.warnings,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        model=manifest.name,
        dataset=Dataset(gt_json=gt_json, images=len(comparison.images)),
        machine=machine_facts() | facts,
        versions={f"export: {key}": value for key, value in manifest.versions.items()} | package_versions(),
    )
