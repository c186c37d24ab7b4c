"""The curves of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from upsnet.charts import Points, is_drawable, line_chart, smooth

Rows = Sequence[Mapping[str, Any]]  # of a metrics.jsonl

SPEED = ("images_per_second", "data_share", "gpu_gib")
NO_LOSSES = {"step", "loss", "lr", "grad_norm", *SPEED}  # keys of a line with losses that are none
PQS = {"all": "pq", "things": "pq_things", "stuff": "pq_stuff"}
SMOOTHED = 25  # windows of the moving average in a run


class Chart(NamedTuple):
    """A titled picture of a page; without a point `svg` is empty."""

    title: str
    svg: Markup
    note: str = ""


def present(charts: Iterable[Chart]) -> list[Chart]:
    """Those with something to see."""
    return [chart for chart in charts if chart.svg]


def column(rows: Rows, key: str, factor: float = 1.0) -> Points:
    """(step, value) of the lines that have the key."""
    return [(row["step"], factor * row[key]) for row in rows if is_drawable(row.get(key))]


def loss_terms(rows: Rows) -> list[str]:
    """The names of the loss's terms, in the order of their first line."""
    return list(dict.fromkeys(key for row in rows if "loss" in row for key in row if key not in NO_LOSSES))


def smoothed(points: Points) -> Points:
    """A moving average that leaves the course of a whole run."""
    return smooth(points, max(1, len(points) // SMOOTHED)) if points else []


def loss_chart(rows: Rows, key: str = "loss", title: str = "Training loss") -> Chart:
    """The total, or one term; the raw values faint behind."""
    points = column(rows, key)
    return Chart(title, line_chart({title: smoothed(points)}, points, title) if len(points) > 1 else Markup(""))


def pq_chart(rows: Rows, title: str = "Validation PQ") -> Chart:
    """PQ of all, things and stuff in points, where there is more than one evaluation."""
    lines = {name: line for name, key in PQS.items() if len(line := column(rows, key, 100)) > 1}
    return Chart(title, line_chart(lines, title=title))
