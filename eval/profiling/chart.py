"""The picture of a profile: time by module and operator, each operator beside its least time, and the roofline."""

from __future__ import annotations

import io
import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from eval.profiling.report import OTHERS, Profile, describe

TEXT, GRID = "#2b313b", "#e3e7ec"
COLORS = ("#2f6bd8", "#c2571a", "#15857b", "#8d4bb8", "#b8a21a", "#d8568f", "#5a7d2a")
REST = "#c3cad4"
BARS = 12  # operators beside their least time
LABEL = 1.22  # a line of text on the logarithmic axis


def draw(report: Profile, kind: str = "png") -> bytes:
    """The picture's file: "png" or "svg"."""
    figure = Figure(figsize=(15, 5.6), layout="constrained", facecolor="white")
    figure.suptitle(describe(report), color=TEXT, fontsize=13, x=0.01, ha="left")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _modules(left, report)
    _operators(middle, report)
    _roofline(right, report)
    for axes in (left, middle, right):
        axes.tick_params(labelcolor=TEXT, length=0)
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "upsnet"}):  # the same picture gives the same bytes
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _modules(axes: Axes, report: Profile) -> None:
    """A bar for each module and variant, in pieces by operator."""
    ms: dict[str, float] = {}
    for row in (row for variant in report.variants for row in variant.operators):
        ms[row.name] = max(row.ms, ms.get(row.name, 0))
    colors = dict(zip(sorted(ms, key=lambda name: -ms[name]), COLORS, strict=False)) | {OTHERS: REST}
    modules = list(dict.fromkeys(row.name for variant in report.variants for row in variant.modules))
    height = 0.8 / len(report.variants)
    for number, variant in enumerate(report.variants):
        for place, module in enumerate(modules):
            pieces = dict.fromkeys(colors, 0.0)
            for operator, length in variant.shares.get(module, {}).items():
                pieces[operator if operator in colors else OTHERS] += length
            start, y = 0.0, place + (number + 0.5) * height - 0.4
            for operator, length in pieces.items():
                axes.barh(y, length, 0.9 * height, start, color=colors[operator], alpha=1 - 0.45 * number)
                start += length
            note = f"  {variant.kernels}" if len(report.variants) > 1 and not place else ""
            axes.text(start, y, f" {start:.{_digits(start)}f}{note}", va="center", color=TEXT, fontsize=9)
    axes.set_yticks(range(len(modules)), modules)
    axes.invert_yaxis()
    axes.set_title("Time by module and operator, ms", color=TEXT, fontsize=11)
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.16)
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    axes.legend(
        handles=handles,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.07),
    )


def _operators(axes: Axes, report: Profile) -> None:
    """The first variant's operators: what they take, and the least that this machine could."""
    variant = report.variants[0]
    rows = variant.operators[:BARS]
    places = np.arange(len(rows))
    axes.barh(places, [row.ms for row in rows], 0.7, color=COLORS[0], alpha=0.35, label="measured")
    axes.barh(places, [row.roof_ms for row in rows], 0.3, color=TEXT, label="the least that the roof allows")
    for place, row in enumerate(rows):
        longest = max(row.ms, row.roof_ms)
        axes.text(longest, place, f" {row.ms:.{_digits(row.ms)}f}", va="center", color=TEXT, fontsize=9)
    axes.set_yticks(places, [f"{row.name} ({row.nodes})" for row in rows])
    axes.invert_yaxis()
    axes.set_title(f"Operators and their nodes, {variant.kernels}, ms", color=TEXT, fontsize=11)
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.14)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="lower right")


def _roofline(axes: Axes, report: Profile) -> None:
    """The first variant's modules under the roof; a circle's area is its time."""
    roof, variant = report.roofline, report.variants[0]
    rows = [row for row in variant.modules if row.macs and row.moved_bytes and row.ms]
    intensity = [2 * row.macs / row.moved_bytes for row in rows]
    rates = [2 * row.macs / row.ms / 1e6 for row in rows]
    knee = roof.gflops / roof.gb_per_s
    least, most = min([knee, *intensity]) / 4, max([knee, *intensity]) * 10
    x = np.geomspace(least, most, 200)
    axes.loglog(x, np.minimum(roof.gflops, x * roof.gb_per_s), color=TEXT, linewidth=1.5)
    areas = [1200 * row.ms / variant.total.ms + 15 for row in rows]
    axes.scatter(intensity, rates, s=areas, color=COLORS[0], alpha=0.5)
    above, beside = math.inf, 1.7 * max(intensity, default=1)
    for rate, where, name in sorted(zip(rates, intensity, (row.name for row in rows), strict=True), reverse=True):
        above = min(rate, above / LABEL)  # one label below the other
        line = {"arrowstyle": "-", "color": GRID}
        axes.annotate(name, (where, rate), (beside, above), va="center", color=TEXT, fontsize=9, arrowprops=line)
    axes.text(most, roof.gflops * 1.1, f"{roof.gflops:.0f} GFLOP/s", ha="right", va="bottom", color=TEXT, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min([*rates, roof.gflops / 10]) / 2, max([*rates, roof.gflops]) * 2)
    axes.set_xlabel("FLOP a byte", color=TEXT)
    axes.set_title(f"Modules in GFLOP/s, and the roof ({roof.gb_per_s:.1f} GB/s)", color=TEXT, fontsize=11)
    axes.grid(color=GRID)


def _digits(milliseconds: float) -> int:
    return 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2
