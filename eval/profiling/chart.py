"""The picture of a profile: time by module and operator, each operator beside its least time, and the roofline."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.profiling.measure import Row
from eval.profiling.report import OTHERS, Profile, describe

TEXT, FAINT, GRID = "#2b313b", "#8a94a3", "#e3e7ec"
COLORS = ("#2f6bd8", "#c2571a", "#15857b", "#8d4bb8", "#b8a21a", "#d8568f", "#5a7d2a")
REST = "#c3cad4"
BARS = 12  # operators beside their least time


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
    first = report.variants[0]
    named = [row.name for variant in report.variants for row in variant.operators[:5]]
    named = list(dict.fromkeys(named))[: len(COLORS)]
    colors = dict(zip(named, COLORS, strict=False)) | {OTHERS: REST}
    modules = [row.name for row in max((each.modules for each in report.variants), key=len)]
    height = 0.8 / len(report.variants)
    used = set()
    for number, variant in enumerate(report.variants):
        for place, module in enumerate(modules):
            pieces = dict.fromkeys(colors, 0.0)
            for operator, ms in variant.shares.get(module, {}).items():
                pieces[operator if operator in colors else OTHERS] += ms
            start, y = 0.0, place + (number + 0.5) * height - 0.4
            for operator, ms in pieces.items():
                label = operator if ms and operator not in used else None
                used |= {operator} if ms else set()
                axes.barh(y, ms, 0.9 * height, start, color=colors[operator], label=label, alpha=1 - 0.45 * number)
                start += ms
            note = variant.kernels if len(report.variants) > 1 and not place else ""
            axes.text(start, y, f" {start:.1f} {note}", va="center", color=TEXT if not number else FAINT, fontsize=9)
    axes.set_yticks(range(len(modules)), modules)
    axes.invert_yaxis()
    axes.set_title(f"Time by module, ms ({_percent(first.outside_ms, first.profiled_ms)} more in no node)", color=TEXT, fontsize=11)
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.16)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, ncols=1, loc="best")


def _operators(axes: Axes, report: Profile) -> None:
    """The first variant's operators: what they take, and the least that this machine could."""
    rows = report.variants[0].operators[:BARS]
    places = np.arange(len(rows))
    axes.barh(places, [row.ms for row in rows], 0.7, color=COLORS[0], alpha=0.35, label="measured")
    axes.barh(places, [row.roof_ms for row in rows], 0.3, color=TEXT, label="at the roof")
    axes.set_yticks(places, [f"{row.name} ({row.nodes})" for row in rows])
    axes.invert_yaxis()
    axes.set_title(f"Operators ({report.variants[0].kernels}), ms", color=TEXT, fontsize=11)
    axes.grid(axis="x", color=GRID)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="lower right")


def _roofline(axes: Axes, report: Profile) -> None:
    """The first variant's modules under the roof; a circle's area is its time."""
    roof, variant = report.roofline, report.variants[0]
    rows = [row for row in variant.modules if row.macs and row.moved_bytes and row.ms]
    intensity = np.array([2 * row.macs / row.moved_bytes for row in rows])
    rate = np.array([_gflops(row) for row in rows])
    ends = np.array([min(0.2, *intensity / 2), max(200, *intensity * 2)])
    x = np.geomspace(*ends, 200)
    axes.loglog(x, np.minimum(roof.gflops, x * roof.gb_per_s), color=TEXT, linewidth=1.5)
    axes.scatter(intensity, rate, s=[1200 * row.ms / variant.total.ms + 15 for row in rows], color=COLORS[0], alpha=0.5)
    for row, where, height in zip(rows, intensity, rate, strict=True):
        axes.annotate(row.name, (where, height), (6, 6), textcoords="offset points", color=TEXT, fontsize=9)
    axes.annotate(f"{roof.gflops:.0f} GFLOP/s", (ends[1], roof.gflops), (-2, 4), textcoords="offset points", ha="right", color=TEXT)
    axes.set_xlabel("FLOP a byte", color=TEXT)
    axes.set_title(f"Modules in GFLOP/s under the roof ({roof.gb_per_s:.1f} GB/s)", color=TEXT, fontsize=11)
    axes.grid(color=GRID)


def _gflops(row: Row) -> float:
    return 2 * row.macs / row.ms / 1e6


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"
