"""training.html: how a run goes, on one page that holds all that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from upsnet.charts import Bar, Points, histogram, line_chart, sparkline
from upsnet.figures import points
from upsnet.files import write_text
from upsnet.history.advice import advice
from upsnet.history.curves import Chart, column, loss_chart, loss_terms, pq_chart, present, smoothed
from upsnet.history.evaluation import ClassQuality, Evaluation, Spread
from upsnet.history.observed import VOID_BINS, Picture
from upsnet.history.run import Run, read_run
from upsnet.pages import open_template

PAGE = "training.html"  # report.html is parity's
TEMPLATES = Path(__file__).parent / "templates"
MOST_TAKEN = 8
OTHERS = {"mIoU": "miou", "box AP": "box_ap", "mask AP": "mask_ap"}


class Tile(NamedTuple):
    value: str
    label: str


class ClassRow(NamedTuple):
    """A class that occurs: its last figures, the change since the evaluation before, its course."""

    quality: ClassQuality
    change: float | None
    course: Markup
    void: float | None  # share of its pixels


def write_page(folder: Path, worst: Sequence[Picture]) -> Path:
    """The page of the run in `folder`, from what lies there, and the worst images of its last evaluation.

    InputError: the folder is no run's, or it cannot be written to.
    """
    run = read_run(folder)
    last = run.last
    page = open_template(TEMPLATES / PAGE, points=points).render(
        run=run,
        last=last,
        warnings=advice(run),
        tiles=_tiles(run),
        quality=_quality_charts(run),
        losses=present([loss_chart(run.rows), *(loss_chart(run.rows, term, term) for term in loss_terms(run.rows))]),
        machine=_machine_charts(run),
        classes=class_rows(run),
        absent=[each.name for each in last.classes if not each.occurs] if last else [],
        void=_void_chart(last) if last else None,
        taken=_taken(last) if last else [],
        worst=worst,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def class_rows(run: Run) -> list[ClassRow]:
    """The lowest PQ first."""
    if not run.last:
        return []
    before = {each.id: each for each in run.evaluations[-2].classes} if len(run.evaluations) > 1 else {}
    rows = []
    for each in run.last.classes:
        if each.occurs:
            old = before.get(each.id)
            change = each.pq - old.pq if old and old.occurs else None
            void = each.void / each.pixels if each.pixels else None
            rows.append(ClassRow(each, change, sparkline(class_course(run, each.id)), void))
    return sorted(rows, key=lambda row: (row.quality.pq, row.quality.name))


def class_course(run: Run, id: int) -> Points:
    """(step, PQ) of a class in the evaluations in which it occurs."""
    return [
        (evaluation.step, each.pq)
        for evaluation in run.evaluations
        for each in evaluation.classes
        if each.id == id and each.occurs
    ]


def _tiles(run: Run) -> list[Tile]:
    """Headlines; what is not there yet is left out."""
    tiles = [Tile(f"{run.step:,}", f"step of {run.length:,}" if run.length else "steps")]
    if scored := run.scored:
        now, best = scored[-1], max(scored, key=lambda row: row["pq"])
        tiles.append(Tile(points(now["pq"]), f"PQ at step {now['step']:,}"))
        tiles.append(Tile(points(best["pq"]), f"best PQ, step {best['step']:,}"))
        kinds = {"PQ things": now.get("pq_things"), "PQ stuff": now.get("pq_stuff")}
        tiles += [Tile(points(value), name) for name, value in kinds.items()]
    for key, form, label in (
        ("images_per_second", "{:.1f}", "images a second"),
        ("data_share", "{:.0%}", "waiting for data"),
        ("gpu_gib", "{:.1f} GiB", "GPU memory, peak"),
    ):
        if line := column(run.rows, key):
            tiles.append(Tile(form.format(line[-1][1]), label))
    return tiles


def _quality_charts(run: Run) -> list[Chart]:
    others = {name: line for name, key in OTHERS.items() if len(line := column(run.rows, key, 100)) > 1}
    seen: dict[str, Points] = {
        "training images": [(each.step, 100 * _mean(each.training)) for each in run.evaluations if each.training],
        "validation images": [(each.step, 100 * _mean(each.validation)) for each in run.evaluations if each.validation],
    }
    seen = {name: line for name, line in seen.items() if len(line) > 1}
    return present(
        [
            pq_chart(run.rows),
            Chart("mIoU and AP", line_chart(others, title="mIoU and AP")),
            Chart(
                "Trained with, and never seen",
                line_chart(seen, title="PQ of an image"),
                "The mean PQ of an image. Where the lines part, the network learns its training images by heart.",
            ),
        ]
    )


def _mean(spread: Spread | None) -> float:
    return spread.mean if spread else 0.0


def _machine_charts(run: Run) -> list[Chart]:
    def chart(title: str, key: str, factor: float = 1.0, raw: bool = True) -> Chart:
        line = column(run.rows, key, factor)
        drawn = line_chart({title: smoothed(line) if raw else line}, line if raw else (), title)
        return Chart(title, drawn if len(line) > 1 else Markup(""))

    return present(
        [
            chart("Learning rate", "lr", raw=False),
            chart("Gradient norm", "grad_norm"),
            chart("Images a second", "images_per_second"),
            chart("Waiting for data, % of the time", "data_share", 100),
            chart("GPU memory, GiB", "gpu_gib", raw=False),
        ]
    )


def _taken(last: Evaluation) -> list[tuple[str, float]]:
    """What lies under the prediction's void: names, the largest shares first."""
    pixels = [("void in the truth too", last.void.both), *((each.name, each.void) for each in last.classes)]
    taken = [(name, number / last.void.predicted) for name, number in pixels if number]
    return sorted(taken, key=lambda each: -each[1])[:MOST_TAKEN]


def _void_chart(last: Evaluation) -> Markup:
    labels = ["none", *(f"≤ {100 * edge:g}" for edge in VOID_BINS[1:])]
    counts = zip(labels, last.void.predicted_bins, last.void.truth_bins, strict=False)
    bars = [Bar(label, (found, truth)) for label, found, truth in counts]
    return histogram(("prediction", "truth"), bars, "images by their share of void pixels")
