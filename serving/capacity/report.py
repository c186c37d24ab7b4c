"""capacity.json, and its tables on the terminal."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from serving.capacity.calibration import Fit
from serving.capacity.planning import Forecast
from serving.capacity.replica import Replica
from serving.capacity.simulation import PERCENTILES, open_loop
from serving.load_test.report import Stage
from upsnet.report import Report
from upsnet.tables import make_table

RUNS = 20  # as short as the stage of a load test
REQUESTS = 30_000


class Check(BaseModel):
    """An open loop of the load test, which the calibration has not seen."""

    model_config = ConfigDict(frozen=True)

    rate: float
    measured_ms: dict[str, float]  # p50, p95, p99
    forecast_ms: dict[str, float]  # after a long time; {} where more arrive than can be answered
    between_ms: dict[str, tuple[float, float]]  # the least and the most of RUNS simulations of as many requests


class CapacityReport(Report):
    """capacity.json."""

    source: str  # the load test, or "options"
    replica: Replica
    most: float  # requests a second that a replica can answer
    fits: list[Fit]
    checks: list[Check]
    limits_ms: dict[str, float]
    max_utilisation: float
    of_one: float  # requests a second of one replica within the limits
    curve: list[Forecast]  # of one replica
    answers: list[Forecast]


def check(replica: Replica, most: float, stage: Stage) -> Check:
    """What the replica, which can answer `most` a second, should have done in a stage of the open loop."""
    runs = [open_loop(replica, stage.value, stage.answers, seed=seed).latency_ms for seed in range(1, RUNS + 1)]
    return Check(
        rate=stage.value,
        measured_ms={name: float(np.percentile(stage.latencies_ms, share)) for name, share in PERCENTILES.items()},
        forecast_ms=open_loop(replica, stage.value, REQUESTS).latency_ms if stage.value < most else {},
        between_ms={name: (min(run[name] for run in runs), max(run[name] for run in runs)) for name in PERCENTILES},
    )


def tables_of(report: CapacityReport) -> list[Table]:
    tables = []
    if report.fits:
        table = make_table("the load test, repeated", "callers", "answers a second", "simulated", left=0)
        for fit in report.fits:
            table.add_row(str(fit.callers), f"{fit.measured:.1f}", f"{fit.repeated:.1f}")
        tables.append(table)
    if report.checks:
        headings = [f"{name}\n{what}" for name in PERCENTILES for what in ("ms", "simulated", "so short a run")]
        table = make_table("requests that arrive by chance", "a second", *headings, left=0)
        for each in report.checks:
            cells = [
                cell
                for name in PERCENTILES
                for cell in (
                    f"{each.measured_ms[name]:.1f}",
                    f"{each.forecast_ms[name]:.1f}" if each.forecast_ms else "–",
                    "{:.1f} to {:.1f}".format(*each.between_ms[name]),
                )
            ]
            table.add_row(f"{each.rate:g}", *cells)
        tables.append(table)
    limits = ", ".join(f"{name} at most {most:g} ms" for name, most in report.limits_ms.items())
    title = (
        f"planned: {limits}; a replica bears {report.of_one:.1f} of the {report.most:.1f} a second that it can answer"
    )
    times = [f"{name}\nms" for name in PERCENTILES]
    headings = ["requests\na second", "replicas", "each\na second", "utilisation", "mean batch", "waiting\nms", *times]
    table = make_table(title, "requests go", *headings)
    for answer in report.answers:
        table.add_row(
            answer.routing,
            f"{answer.rate:g}",
            str(answer.replicas),
            f"{answer.rate / answer.replicas:.1f}",
            f"{answer.utilisation:.0%}",
            f"{answer.mean_batch:.2f}",
            f"{answer.waiting_ms:.1f}",
            *(f"{answer.latency_ms[name]:.1f}" for name in PERCENTILES),
        )
    return [*tables, table]
