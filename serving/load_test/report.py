"""load.json, and its table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, PositiveInt
from rich.table import Table

from serving.load_test.loops import OK, WRONG, Sample
from upsnet.report import Report
from upsnet.tables import make_table

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
REFUSALS = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")  # what a server under too much load is right to say
Loop = Literal["closed", "open"]
MOST_BATCH = 1024
MOST_SAID = 5  # different messages that are kept of a stage


class Said(BaseModel):
    """What was answered instead of a result."""

    status: str  # gRPC's, or WRONG
    message: str
    times: int


class Stage(BaseModel):
    """One value of --concurrency or --rate."""

    loop: Loop
    value: float  # callers, or requests a second
    seconds: float
    statuses: dict[str, int]  # how the requests ended: OK, WRONG or gRPC's status
    throughput: float  # right answers a second
    latency_ms: dict[str, float]  # of right answers: p50, p90, p99 and max; empty without any
    latencies_ms: list[float]  # of right answers, ascending
    said: list[Said]
    batches: dict[str, dict[str, int]]  # how often the server ran a batch of a size, by model; {} where it does not say
    memory_bytes: dict[str, int]  # of the server's processes, at the end of the stage; {} where it does not say

    @property
    def title(self) -> str:
        return stage_title(self.loop, self.value)

    @property
    def answers(self) -> int:
        return self.statuses.get(OK, 0)

    @property
    def refusals(self) -> int:
        return sum(self.statuses.get(status, 0) for status in REFUSALS)

    @property
    def wrong(self) -> int:
        return self.statuses.get(WRONG, 0)

    @property
    def errors(self) -> int:
        return sum(self.statuses.values()) - self.answers - self.refusals - self.wrong

    @property
    def mean_batch(self) -> str:
        """Of each model."""
        means = (
            sum(int(size) * times for size, times in sizes.items()) / sum(sizes.values())
            for sizes in self.batches.values()
        )
        return " / ".join(f"{mean:.2f}" for mean in means) or "–"


def stage_title(loop: str, value: float) -> str:
    if loop == "open":
        return f"{value:g} a second"
    return f"{value:g} caller{'s' if value != 1 else ''}"


class LoadReport(Report):
    """load.json."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    server: str
    model: str
    model_name: str
    max_batch: int | None = Field(default=None, ge=1, le=MOST_BATCH)  # of the model
    instances: dict[str, PositiveInt] = Field(default_factory=dict)  # by model, of those that the server describes
    photos: int
    requests_bytes: list[int]  # of each photo's message
    stages: list[Stage]

    @property
    def failed(self) -> bool:
        """Was an answer wrong, or an error one that load does not explain?"""
        return any(stage.wrong or stage.errors for stage in self.stages)


def make_stage(
    loop: Loop,
    value: float,
    seconds: float,
    samples: Sequence[Sample],
    said: Counter[tuple[str, str]],
    batches: dict[str, dict[str, int]],
    memory: dict[str, int],
) -> Stage:
    good = sorted(1e3 * sample.seconds for sample in samples if sample.status == OK)
    return Stage(
        loop=loop,
        value=value,
        seconds=seconds,
        statuses=dict(Counter(sample.status for sample in samples)),
        throughput=len(good) / seconds,
        latency_ms={name: float(np.percentile(good, share)) for name, share in PERCENTILES.items()} if good else {},
        latencies_ms=[round(value, 3) for value in good],
        said=[Said(status=key[0], message=key[1], times=times) for key, times in said.most_common(MOST_SAID)],
        batches=batches,
        memory_bytes=memory,
    )


def table_of(report: LoadReport) -> Table:
    title = f"{report.model} ({report.model_name}) at {report.server}, {report.photos} photos"
    models = " / ".join(next((stage.batches for stage in report.stages if stage.batches), {}))
    times = [f"{name}\nms" for name in PERCENTILES]
    table = make_table(
        title, "", "answers", "a second", *times, "refused", "errors", "wrong", f"mean batch\n{models}", "memory\nMiB"
    )
    for stage in report.stages:
        latency = [f"{stage.latency_ms[name]:.1f}" if stage.latency_ms else "–" for name in PERCENTILES]
        memory = f"{sum(stage.memory_bytes.values()) / 2**20:.0f}" if stage.memory_bytes else "–"
        counts = map(str, (stage.refusals, stage.errors, stage.wrong))
        row = [stage.title, str(stage.answers), f"{stage.throughput:.1f}", *latency, *counts, stage.mean_batch, memory]
        table.add_row(*row)
    return table
