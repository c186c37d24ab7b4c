"""The report's line charts: matplotlib's, as pictures inside the page, one for a light page and one for a dark one."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

Points = list[tuple[float, float]]

# The colours of report.html: text, grid, faint line, series.
THEMES = {
    "light": ("#5b6472", "#e3e7ec", "#cfdcf3", ("#2f6bd8", "#c2571a", "#15857b")),
    "dark": ("#a5aebb", "#2b313b", "#2c3f63", ("#7aa7f8", "#f0a067", "#59c9bd")),
}


def line_chart(series: dict[str, Points], faint: Points | None = None) -> dict[str, str]:
    """Named series over training steps -> theme: SVG as a data: address. `faint` is drawn thin behind them."""
    return {theme: _draw(series, faint or [], *colors) for theme, colors in THEMES.items()}


def _draw(series: dict[str, Points], faint: Points, text: str, grid: str, thin: str, lines: tuple[str, ...]) -> str:
    figure = Figure(figsize=(5.6, 2.5), layout="constrained")
    axes = figure.subplots()
    if faint:
        axes.plot(*_columns(faint), color=thin, linewidth=0.8)
    for (name, points), color in zip(series.items(), lines, strict=False):
        axes.plot(*_columns(points), color=color, linewidth=1.8, label=name)
        axes.plot(*points[-1], "o", color=color, markersize=5)
    axes.set_ylim(bottom=min(0.0, *(value for points in [*series.values(), faint] for _, value in points)))
    axes.set_xlabel("step", color=text, loc="right")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelcolor=text, length=0)
    axes.grid(axis="y", color=grid)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    if len(series) > 1:
        axes.legend(labelcolor=text, frameon=False, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1))
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "upsnet"}):  # the same picture gives the same bytes
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _columns(points: Points) -> np.ndarray:
    return np.array(points, float).reshape(-1, 2).T


def smooth(points: Points, window: int) -> Points:
    """Moving average over the last `window` values."""
    steps, values = _columns(points)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return list(zip(steps.tolist(), ((sums[ends] - sums[starts]) / (ends - starts)).tolist(), strict=True))
