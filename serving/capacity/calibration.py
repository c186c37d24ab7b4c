"""From a load test of one replica to its queue: the times with which the simulation repeats what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from serving.capacity.replica import Replica, variation_of
from serving.capacity.simulation import closed_loop
from serving.load_test.report import LoadReport, Stage
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError

REQUESTS = 600  # of a closed loop that is simulated
GRID, ROUNDS = 7, 3  # values of each unknown; how often the grid is made finer around the best
MOST_CALLERS = 4096
GROWTH = 1.1  # by how much more callers may still raise the throughput of a replica that counts as full


class Fit(NamedTuple):
    """A number of callers of the load test."""

    callers: int
    measured: float  # answers a second
    repeated: float  # the same by simulation


class Calibration(NamedTuple):
    """A replica, and how well it repeats its load test."""

    replica: Replica
    fits: list[Fit]

    @property
    def full(self) -> bool:
        """Was the load enough to know how much the replica can answer?"""
        return self.fits[-1].measured <= GROWTH * max(fit.measured for fit in self.fits[:-1])


def calibrate(report: LoadReport) -> Calibration:
    """The replica that answers as fast as measured, for every number of callers.

    One caller alone gives the time of a request and its variation; how the throughput grows with more callers says how
    much of that time the processor is taken, and what a batch saves. InputError where the report has not what it takes,
    or requests failed.
    """
    stages = _closed(report)
    if report.max_batch is None or not {MODEL, report.model} <= report.instances.keys():
        raise InputError("the load test does not tell how many instances serve; measure again")
    seconds = np.array(stages[0].latencies_ms) / 1e3
    alone = float(seconds.mean())
    variation, max_batch, instances = variation_of(seconds), report.max_batch, report.instances

    def replica(share: float, whole: float) -> Replica:
        """share: of a lone request's time, when the processor is taken; whole: of this, what a batch needs once."""
        taken = share * alone
        return Replica(
            takers=instances[PHOTO_MODEL] if report.model == PHOTO_MODEL else None,
            instances=instances[MODEL],
            max_batch=max_batch,
            prepare_seconds=alone - taken,
            batch_seconds=whole * taken,
            photo_seconds=(1 - whole) * taken,
            variation=variation,
        )

    def error(share: float, whole: float, enough: float) -> float:
        """Of the logarithms, squared; no further than `enough`. One caller alone is as measured by construction."""
        total, made = 0.0, replica(share, whole)
        for stage in reversed(stages[1:]):
            total += math.log(_throughput(made, int(stage.value)) / stage.throughput) ** 2
            if total >= enough:
                break
        return total

    found = replica(*_least(error, max_batch > 1))
    fits = [Fit(int(stage.value), stage.throughput, _throughput(found, int(stage.value))) for stage in stages]
    return Calibration(found, fits)


def _closed(report: LoadReport) -> list[Stage]:
    """The stages of the closed loop by their callers, the first with one."""
    if report.failed:
        raise InputError("the load test has wrong answers or errors; look into them first, then measure again")
    stages = sorted((stage for stage in report.stages if stage.loop == "closed"), key=lambda stage: stage.value)
    if len(stages) < 3 or stages[0].value != 1 or stages[-1].value > MOST_CALLERS:
        raise InputError("the load test needs one caller alone and more; measure with --concurrency 1 2 4 8 16 32")
    for stage in stages:
        if stage.refusals or not stage.answers:
            raise InputError(f"the load test has refused requests at {stage.title}; measure with fewer callers")
        if not stage.throughput > 0 or len(stage.latencies_ms) != stage.answers or not min(stage.latencies_ms) > 0:
            raise InputError(f"the load test is damaged at {stage.title}; measure again")
    return stages


def _throughput(replica: Replica, callers: int) -> float:
    found = closed_loop(replica, callers, REQUESTS)
    return len(found.latencies) / found.seconds


def _least(error: Callable[[float, float, float], float], batches: bool) -> tuple[float, float]:
    """Where it is least, both arguments between 0 and 1: a grid, then finer ones around the best."""
    first, second = np.linspace(0.02, 1, GRID), np.linspace(0, 0.98, GRID) if batches else np.zeros(1)
    best, least = (1.0, 0.0), math.inf
    for _ in range(ROUNDS):
        for pair in product(first.tolist(), second.tolist()):
            if (found := error(*pair, least)) < least:
                best, least = pair, found
        first, second = _around(best[0], first), _around(best[1], second)
    return best


def _around(value: float, values: np.ndarray) -> np.ndarray:
    if len(values) == 1:
        return values
    step = values[1] - values[0]
    return np.linspace(max(values[0], value - step), min(values[-1], value + step), GRID)
