"""The picture of an ablation: what each part is worth, seed by seed, and the curves behind it."""

from __future__ import annotations

import io
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.ablation.report import Ablation, Row, Verdict, Worth

TEXT, GRID, FAINT = "#2b313b", "#e3e7ec", "#9aa4b2"
COLORS: dict[Verdict, str] = {
    "pays": "#15857b", "costs": "#c2571a", "within the spread": "#2f6bd8", "one seed": "#2f6bd8"
}  # fmt: skip
ACROSS = 4  # curves in a row


def draw(report: Ablation) -> bytes:
    """A PNG: on the left PQ that a part is worth, a dot a seed; on the right PQ over the steps, with and without."""
    found = [(row, worth) for row in report.rows if (worth := report.worth(row)) is not None]
    down = max(1, math.ceil(len(found) / ACROSS))
    figure = Figure(figsize=(17, max(3.4, 1.9 * down)), layout="constrained", facecolor="white")
    figure.suptitle(
        f"What each part of {report.config} is worth: {report.extent}", color=TEXT, fontsize=13, x=0.01, ha="left"
    )
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.5))[0]
    _worths(left.subplots(), found)
    grid = right.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (row, worth) in zip(grid, found, strict=False):
        _curves(axes, report.rows[0], row, worth)
    grid[0].set_ylim(bottom=0)  # of all of them, once they are drawn
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _worths(axes: Axes, found: list[tuple[Row, Worth]]) -> None:
    """The mean is a bar, the seeds are dots."""
    for place, (_, worth) in enumerate(found):
        color = COLORS[worth.verdict]
        axes.barh(place, 100 * worth.mean, 0.62, color=color, alpha=0.35)
        axes.plot([100 * each for each in worth.differences], [place] * len(worth.differences), "o", color=color)
    axes.axvline(0, color=TEXT, linewidth=0.8)
    axes.set_yticks(range(len(found)), [row.name for row, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel(
        "points of PQ that the part is worth\ngreen: it pays, orange: it costs, blue: within the spread", color=TEXT
    )
    _plain(axes, "x")


def _curves(axes: Axes, base: Row, row: Row, worth: Worth) -> None:
    for each, color, name in ((base, FAINT, "everything"), (row, COLORS[worth.verdict], row.name)):
        for index, seed in enumerate(each.seeds):
            steps = [step for step, _ in seed.curve]
            values = [100 * pq for _, pq in seed.curve]
            axes.plot(steps, values, color=color, linewidth=1.3, label=None if index else name)
    axes.set_title(row.name, color=TEXT, fontsize=9)
    _plain(axes, "y")


def _plain(axes: Axes, grid: str) -> None:
    axes.tick_params(labelcolor=TEXT, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.grid(axis=grid, color=GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
