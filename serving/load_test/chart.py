"""A load test as a picture: how the latencies are distributed, and how they and the throughput depend on the load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serving.latency_chart import in_milliseconds, write
from serving.load_test.report import LoadReport, Stage
from upsnet.files import PathLike

TAIL = 1e-3  # the distribution is drawn up to p99.9, or as far as the answers reach
TICKS = {0.9: "p10", 0.5: "p50", 0.1: "p90", 0.01: "p99", 0.001: "p99.9"}
COLOURS = ("#2f6bd8", "#c2571a", "#15857b", "#8a4fbf", "#b23a5e", "#6b7280")
CURVES = {"p50": "#2f6bd8", "p90": "#c2571a", "p99": "#b23a5e"}
LOADS = {"closed": "callers at once", "open": "requests a second"}


def draw(report: LoadReport, path: PathLike) -> None:
    """A PNG: the distribution of every stage's latencies, and a panel for each of the two loops that was run."""
    stages = [stage for stage in report.stages if stage.latencies_ms]
    loops = [loop for loop in LOADS if any(stage.loop == loop for stage in stages)]
    figure = Figure(figsize=(5 + 5 * len(loops), 4), layout="constrained")
    panels = figure.subplots(1, 1 + len(loops), squeeze=False)[0]
    _distribution(panels[0], stages)
    for axes, loop in zip(panels[1:], loops, strict=True):
        _against_load(axes, loop, [stage for stage in stages if stage.loop == loop])
    figure.suptitle(f"{report.model} ({report.model_name})", x=0.01, ha="left")
    for axes in panels:
        in_milliseconds(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="best")
    write(figure, path)


def _distribution(axes: Axes, stages: Sequence[Stage]) -> None:
    """The share of answers that are slower, on a logarithmic axis: the tail is what callers notice."""
    for stage, colour in zip(stages, COLOURS * len(stages), strict=False):
        slower = 1 - np.arange(len(stage.latencies_ms)) / len(stage.latencies_ms)
        axes.plot(slower, stage.latencies_ms, color=colour, label=stage.title, drawstyle="steps-post")
    axes.set(xscale="log", xlim=(1, TAIL), xlabel="percentile", title="Latency")
    axes.set_xticks(list(TICKS), list(TICKS.values()))
    axes.minorticks_off()


def _against_load(axes: Axes, loop: str, stages: Sequence[Stage]) -> None:
    """Percentiles, and above them what was answered a second."""
    values = [stage.value for stage in stages]
    for name, colour in CURVES.items():
        axes.plot(values, [stage.latency_ms[name] for stage in stages], "o-", color=colour, label=name)
    for stage in stages:
        place = stage.value, stage.latency_ms["p99"]
        axes.annotate(f"{stage.throughput:.3g}/s", place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel=LOADS[loop], title="Latency and answers a second against load")
    axes.margins(0.12, 0.2)
