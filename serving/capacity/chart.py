"""The latency of one replica by its load, as a picture: planned as curves, measured as dots."""

from __future__ import annotations

from matplotlib.figure import Figure

from serving.capacity.report import CapacityReport
from serving.latency_chart import in_milliseconds, write
from upsnet.files import PathLike

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
    in_milliseconds(axes)
    axes.set(xlabel="requests a second of one replica", xlim=(0, report.most))
    axes.set_ylim(top=min(top, axes.get_ylim()[1]))
    place = (report.of_one, axes.get_ylim()[0])
    axes.annotate(f"{report.of_one:.3g} a second", place, (5, 5), textcoords="offset points", color="#6b7280")
    figure.legend(frameon=False, loc="outside right upper")
    axes.set_title(f"One replica can answer {report.most:.3g} requests a second", loc="left")
    write(figure, path)
