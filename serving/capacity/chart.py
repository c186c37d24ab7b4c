"""The latency of one replica by its load, as a picture: planned as curves, measured as dots."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from serving.capacity.report import CapacityReport
from upsnet.files import PathLike, write_bytes

COLOURS = {"p50": "#2f6bd8", "p95": "#c2571a", "p99": "#b23a5e"}


def draw(report: CapacityReport, path: PathLike) -> None:
    """A PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    rates = [point.rate for point in report.curve]
    for name, colour in COLOURS.items():
        axes.plot(rates, [point.latency_ms[name] for point in report.curve], color=colour, label=f"{name}, planned")
        if report.checks:
            measured = [each.measured_ms[name] for each in report.checks]
            axes.plot(
                [each.rate for each in report.checks], measured, "o", color=colour, ms=6, label=f"{name}, measured"
            )
        if name in report.limits_ms:
            axes.axhline(report.limits_ms[name], color=colour, lw=1, ls="--", label=f"{name}, limit")
    axes.axvline(report.of_one, color="#6b7280", lw=1)
    top = 3 * max(report.curve[-1].latency_ms["p50"], *report.limits_ms.values())
    axes.set(yscale="log", xlabel="requests a second of one replica", ylabel="ms", xlim=(0, report.most))
    axes.set_ylim(top=min(top, axes.get_ylim()[1]))
    place = (report.of_one, axes.get_ylim()[0])
    axes.annotate(f"{report.of_one:.3g} a second", place, (5, 5), textcoords="offset points", color="#6b7280")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(color="#e3e7ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    axes.set_title(f"One replica can answer {report.most:.3g} requests a second", loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
