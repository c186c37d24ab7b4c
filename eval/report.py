"""report.html: one self-contained page that shows what a parity run found, with pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.parity_report import Parity
from upsnet.categories import Categories
from upsnet.draw import overlay
from upsnet.figures import points, share, signed, title
from upsnet.files import write_text
from upsnet.history.curves import Chart, loss_chart, pq_chart, present
from upsnet.json_model import read_steps
from upsnet.pages import open_template
from upsnet.parity.lockstep import Example
from upsnet.pictures import embed

DEMO = Path("runs/demo")  # what `make view` shows where no run is named
VIEWER = "http://127.0.0.1:8010/"  # where it is


class Picture(NamedTuple):
    """A picture of the grid and the pixels that differ, as data: addresses."""

    title: str
    note: str
    src: str
    difference: str | None = None


def write_report(
    path: Path, parity: Parity, examples: list[Example], categories: Categories, run: Path | None = None
) -> None:
    """Renders parity.json's figures and the examples; training curve and configuration from `run`."""
    config = run / "config.yaml" if run else None
    file = Path(__file__).parent / "templates/report.html"
    page = open_template(file, points=points, signed=signed, share=share, title=title).render(
        parity=parity,
        largest_difference=max(abs(each) for column in parity.columns for each in column.difference.values()),
        least_identical=min(column.identical for column in parity.columns),
        examples=[(example, _pictures(example, categories)) for example in examples],
        charts=training_charts(run / "metrics.jsonl") if run else [],
        config=config.read_text() if config and config.is_file() else "",
        run=run.name if run else parity.model,
        view=f"make view{'' if run == DEMO else f' RUN={shlex.quote(str(run))}'}" if run else "",
        viewer=VIEWER,
    )
    write_text(path, page)


def training_charts(metrics: Path) -> list[Chart]:
    """Loss and validation PQ over the steps of metrics.jsonl; [] without such a file."""
    if not metrics.is_file():
        return []
    rows = [content for _, content in read_steps(metrics)]
    return present([loss_chart(rows), pq_chart(rows)])


def _pictures(example: Example, categories: Categories) -> list[Picture]:
    photo, truth = example.photo, example.truth
    pictures = [Picture("Image", f"{photo.shape[1]} × {photo.shape[0]}", embed(photo))]
    if truth is not None:
        drawn = embed(overlay(photo, truth, categories, scores=False))
        pictures.append(Picture("Truth", f"{len(truth.segments)} segments", drawn))
    for index, shot in enumerate(example.shots):
        figures, difference = shot.figures, None
        note = "no segments" if figures.pq is None else f"PQ {points(figures.pq)}"
        if index:
            note += f" · {share(figures.identical)} identical"
            note += "" if figures.batch == 1 else f" (batch {figures.batch})"
        if not shot.same.all():
            difference = embed(difference_picture(photo, shot.same))
        picture = embed(overlay(photo, shot.result, categories))
        pictures.append(Picture(title(figures.runtime), note, picture, difference))
    return pictures


def difference_picture(photo: np.ndarray, identical: np.ndarray) -> np.ndarray:
    """The photo in dim gray with the differing pixels in red."""
    gray = np.repeat((photo.mean(2, keepdims=True) * 0.45).astype(np.uint8), 3, axis=2)
    return np.where(identical[..., None], gray, np.array([255, 60, 60], np.uint8))
