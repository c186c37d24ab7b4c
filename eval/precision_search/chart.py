"""The picture of a search: PQ against time, a point for each recipe that was looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from eval.precision_search.journal import Evaluation
from eval.precision_search.report import UNDECIDED, PrecisionSearch
from upsnet.manifest import ModuleType, Recipe

TEXT, GRID, FAINT = "#2b313b", "#e3e7ec", "#9aa4b2"
COLORS: dict[ModuleType, str] = {
    "fp32": "#9aa4b2", "fp16": "#2f6bd8", "bf16": "#15857b", "int8": "#c2571a", "fp8": "#8d4bb8"
}  # fmt: skip


def draw(report: PrecisionSearch, evaluations: Sequence[Evaluation]) -> bytes:
    """A PNG: on the left every evaluation of the search, on the right what each module alone costs and saves."""
    figure = Figure(figsize=(14, 5.4), layout="constrained", facecolor="white")
    figure.suptitle(report.title, color=TEXT, fontsize=12, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _against_time(left, report, evaluations)
    _alone(right, report)
    for axes in (left, right):
        axes.tick_params(labelcolor=TEXT, length=0)
        axes.spines[:].set_visible(False)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _against_time(axes: Axes, report: PrecisionSearch, evaluations: Sequence[Evaluation]) -> None:
    some = [each for each in evaluations if each.images == report.searched_images]
    axes.plot([each.time for each in some], [100 * each.pq for each in some], "o", color=FAINT, markersize=5)
    for each in some:
        if not each.recipe.modules and each.recipe != report.recipe:
            _mark(axes, each, f"all {each.recipe.default}", COLORS[each.recipe.default])
    reference = next(each for each in some if each.recipe == Recipe())
    limit = 100 * reference.pq - report.max_drop
    axes.axhline(limit, color="#d8568f", linewidth=1, linestyle="--")
    axes.text(1, limit, f" {report.max_drop:g} points lost", color="#d8568f", va="bottom", ha="right", fontsize=9,
              transform=axes.get_yaxis_transform())  # fmt: skip
    found = next((each for each in some if each.recipe == report.recipe), None)
    if found is not None:
        axes.plot([found.time], [100 * found.pq], "*", color="#2b313b", markersize=15, zorder=4)
        axes.annotate(
            "found" if report.complete else "so far",
            (found.time, 100 * found.pq),
            (-9, -16),
            ha="right",
            textcoords="offset points",
            color=TEXT,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"time, {report.unit}{' (estimated)' * report.estimated}", color=TEXT)
    axes.set_ylabel(f"PQ on {report.searched_images} images", color=TEXT)


def _mark(axes: Axes, each: Evaluation, text: str, color: str) -> None:
    axes.plot([each.time], [100 * each.pq], "o", color=color, markersize=9, zorder=3)
    axes.annotate(text, (each.time, 100 * each.pq), (0, 9), textcoords="offset points", ha="center", color=color)


def _alone(axes: Axes, report: PrecisionSearch) -> None:
    """A bar for each module: the points that it loses alone; its colour: the type that it got. What it saves and got
    stands beside the axes, where no bar is."""
    names = [each.module for each in report.alone]
    got = [report.got(name) for name in names]
    colors = [COLORS.get(report.recipe.type_of(name), FAINT) for name in names]
    bars = axes.barh(range(len(names)), [each.drop for each in report.alone], color=colors)
    for bar, kind in zip(bars, got, strict=True):
        if kind == UNDECIDED:
            bar.set(facecolor="white", edgecolor=FAINT, hatch="////")
    about = "estimated, " if report.estimated else ""
    beside = [(-1.0, f"saves ({about}{report.unit}); got")]
    beside += [(float(place), f"{each.saved:.2g}; {got[place]}") for place, each in enumerate(report.alone)]
    for place, text in beside:
        axes.text(1.01, place, text, va="center", color=TEXT, fontsize=8, transform=axes.get_yaxis_transform())
    axes.axvline(0, color=TEXT, linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{each.module}  {each.kind}" for each in report.alone])
    axes.set_ylim(len(names) - 0.4, -1.5)
    axes.set_xlabel("points of PQ lost, alone at the narrowest type", color=TEXT)
