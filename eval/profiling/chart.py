"""The picture of a profile: time by module and operator, each operator beside its least time, and the roofline."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from eval.profiling.report import OTHERS, Profile, describe, rate

TEXT, GRID = "#2b313b", "#e3e7ec"
COLORS = ("#2f6bd8", "#c2571a", "#15857b", "#8d4bb8", "#b8a21a", "#d8568f", "#5a7d2a", "#4fb3d9", "#7a4a2b", "#e39a5b")
REST = "#c3cad4"
BARS = 12  # operators beside their least time
LINE = 0.045  # a line of text, as a share of an axis' height


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
    colors = _colors(report)
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


def _colors(report: Profile) -> dict[str, str]:
    """Of the longest operators, among them that of every module, in descending time; of all others together."""
    ms: dict[str, float] = {}
    for row in (row for variant in report.variants for row in variant.operators):
        ms[row.name] = max(row.ms, ms.get(row.name, 0))
    shares = [share for variant in report.variants for share in variant.shares.values() if share]
    needed = {max(share, key=lambda name: share[name]) for share in shares}
    chosen = sorted(ms, key=lambda name: (name not in needed, -ms[name]))[: len(COLORS)]
    return dict(zip(sorted(chosen, key=lambda name: -ms[name]), COLORS, strict=False)) | {OTHERS: REST}


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
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(f"Operators and their nodes, {variant.kernels}, ms", color=TEXT, fontsize=11)
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.14)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="lower right")


def _roofline(axes: Axes, report: Profile) -> None:
    """The first variant's modules under the roof, and under that of bytes where such are multiplied; a circle's area is
    its time."""
    roof, variant = report.roofline, report.variants[0]
    roofs = {rate(roof.gflops): roof.gflops}
    if variant.total.half_macs and roof.half_gflops:
        roofs[f"{rate(roof.half_gflops)}, fp16, bf16"] = roof.half_gflops
    if variant.total.int8_macs:
        roofs[f"{rate(roof.int8_gops, 'OP/s')}, int8"] = roof.int8_gops
    rows = [row for row in variant.modules if row.macs and row.moved_bytes and row.ms]
    intensity = [2 * row.macs / row.moved_bytes for row in rows]
    rates = [2 * row.macs / row.ms / 1e6 for row in rows]
    knees = [peak / roof.gb_per_s for peak in roofs.values()]
    left, right = min([*knees, *intensity]) / 6, max([*knees, *intensity]) * 12
    low, high = min([*rates, roof.gflops / 10]) / 2, max([*rates, *roofs.values()]) * 2
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    x = np.geomspace(left, right, 400)
    for peak in roofs.values():
        axes.plot(x, np.minimum(peak, x * roof.gb_per_s), color=TEXT, linewidth=1.5)
    for (name, peak), y in zip(roofs.items(), _apart(list(roofs.values()), low, high), strict=True):
        axes.text(min(peak / roof.gb_per_s, right) / 1.2, y, name, ha="right", va="center", color=TEXT, fontsize=9)
    areas = [1200 * row.ms / variant.total.ms + 15 for row in rows]
    axes.scatter(intensity, rates, s=areas, color=COLORS[0], alpha=0.5)
    beside, line = 1.7 * max(intensity, default=1), {"arrowstyle": "-", "color": GRID}
    for row, where, height, y in zip(rows, intensity, rates, _apart(rates, low, high), strict=True):
        axes.annotate(row.name, (where, height), (beside, y), va="center", color=TEXT, fontsize=9, arrowprops=line)
    for axis, ends in ((axes.xaxis, (left, right)), (axes.yaxis, (low, high))):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 1e3 * ends[0] else (1, 3), numticks=30))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOP a byte", color=TEXT)
    axes.set_title(
        f"Modules in GFLOP/s; roof of {roof.gb_per_s:.{_digits(roof.gb_per_s)}f} GB/s", color=TEXT, fontsize=11
    )
    axes.grid(color=GRID)


def _apart(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Where labels stand that belong at `heights` of a logarithmic axis: a line of text apart, inside the axis."""
    order = sorted(range(len(heights)), key=lambda index: -heights[index])
    places = [math.log(heights[index] / low) / math.log(high / low) for index in order]
    ceiling = 1.0
    for rank in range(len(places)):
        places[rank] = ceiling = min(places[rank], ceiling - LINE)
    floor = 0.0
    for rank in reversed(range(len(places))):
        places[rank] = floor = max(places[rank], floor + LINE)
    found = dict(zip(order, places, strict=True))
    return [low * (high / low) ** found[index] for index in range(len(heights))]


def _digits(milliseconds: float) -> int:
    return 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2
