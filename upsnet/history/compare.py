"""Training runs side by side: in which settings they differ, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from upsnet.charts import Points
from upsnet.errors import InputError
from upsnet.figures import points
from upsnet.history.curves import SMOOTHED, Rows, column, loss_terms
from upsnet.history.run import Run

DASH = "–"
QUALITIES = {
    "PQ": "pq",
    "PQ things": "pq_things",
    "PQ stuff": "pq_stuff",
    "mIoU": "miou",
    "box AP": "box_ap",
    "mask AP": "mask_ap",
}


class Row(NamedTuple):
    """A name, and what each run has for it; a dash where one has nothing."""

    name: str
    values: list[str]


class ClassRow(NamedTuple):
    """The PQ of a class at each run's last evaluation; None where it does not occur there, or is not known."""

    name: str
    isthing: bool
    pqs: list[float | None]


class Comparison(NamedTuple):
    runs: list[Run]
    names: list[str]
    settings: list[Row]  # those that differ
    figures: list[Row]
    classes: list[ClassRow]  # the largest differences first
    missing: list[str]  # sentences


def compare(runs: Sequence[Run]) -> Comparison:
    """InputError for less than two runs, or for one that is named twice."""
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(runs):
        twice = next(run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1)
        raise InputError(f"{twice.folder}: named twice; give two runs or more, each once")
    if len(runs) < 2:
        raise InputError("give two runs or more, as `upsnet runs compare runs/a runs/b`")
    names = run_names(runs)
    missing = [f"{name}: {text}" for name, run in zip(names, runs, strict=True) for text in run.missing]
    settings, lacking = differing(runs, names)
    return Comparison(list(runs), names, settings, figures(runs), classes(runs), missing + lacking)


def run_names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; their paths where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def differing(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The settings in which those runs differ that have them, and a sentence for each run that lacks some: of an older
    version, or of another kind of the same part."""
    known = [run.settings for run in runs if run.settings]
    keys = list(dict.fromkeys(key for settings in known for key in settings))
    rows = []
    for key in keys:
        values = [repr_of(settings[key]) for settings in known if key in settings]
        if len(set(values)) > 1:
            rows.append(Row(key, [repr_of(run.settings[key]) if key in run.settings else DASH for run in runs]))
    lacking = [
        f"{name}: its config.yaml lacks {', '.join(absent)}"
        for name, run in zip(names, runs, strict=True)
        if run.settings and (absent := [key for key in keys if key not in run.settings])
    ]
    return rows, lacking


def repr_of(value: object) -> str:
    """As YAML has it, more or less."""
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def figures(runs: Sequence[Run]) -> list[Row]:
    """Final and best figures, rows of which at least one run has something."""
    terms = dict.fromkeys(term for run in runs for term in loss_terms(run.rows))
    losses = {"loss at the end": "loss"} | {f"loss {term}": term for term in terms}
    rows = [
        Row("steps", [f"{run.step:,}" + (f" of {run.length:,}" if run.length else "") for run in runs]),
        Row("best PQ", [_best(run) for run in runs]),
        *(Row(f"last {name}", [_last(run.scored, key, 100, ".1f") for run in runs]) for name, key in QUALITIES.items()),
        *(Row(name, [_end(run.rows, key) for run in runs]) for name, key in losses.items()),
        Row("images a second", [_mean(column(run.rows, "images_per_second"), ".1f") for run in runs]),
        Row("waiting for data", [_mean(column(run.rows, "data_share"), ".0%") for run in runs]),
        Row("GPU memory, GiB", [_last(run.rows, "gpu_gib", 1, ".1f") for run in runs]),
    ]
    return [row for row in rows if set(row.values) != {DASH}]


def classes(runs: Sequence[Run]) -> list[ClassRow]:
    """By name and kind, since ids may differ between data sets."""
    known = [
        {(each.name, each.isthing): each.pq for each in run.last.classes if each.occurs} if run.last else {}
        for run in runs
    ]
    keys = dict.fromkeys(key for table in known for key in table)
    rows = [ClassRow(*key, [table.get(key) for table in known]) for key in keys]
    return sorted(rows, key=lambda row: (-_spread(row.pqs), row.name))


def _spread(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return max(there) - min(there)


def _best(run: Run) -> str:
    course = column(run.scored, "pq")
    step, best = max(course, key=lambda each: each[1], default=(0, None))
    return DASH if best is None else f"{points(best)} (step {step:,.0f})"


def _last(rows: Rows, key: str, factor: float, form: str) -> str:
    line = column(rows, key, factor)
    return format(line[-1][1], form) if line else DASH


def _end(rows: Rows, key: str) -> str:
    """The mean of the last lines, as the curves' moving average ends."""
    line = column(rows, key)
    return _mean(line[-max(1, len(line) // SMOOTHED) :], ".4g")


def _mean(line: Points, form: str) -> str:
    return format(sum(value for _, value in line) / len(line), form) if line else DASH
