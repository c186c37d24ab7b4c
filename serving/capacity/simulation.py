"""Replicas under load, request by request (a discrete-event simulation): no formula knows batches and their tails."""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate, count
from typing import NamedTuple

import numpy as np

from serving.capacity.replica import Replica
from serving.capacity.station import Batch, Group, Station

WARM_UP = 0.1  # of the requests, which meet queues that are too short
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
FULL = 16  # largest batches that are under way in a replica which counts as full
REQUESTS_FULL = 4000


class Simulated(NamedTuple):
    """Of the requests after the warm-up."""

    latencies: np.ndarray  # seconds, from arrival to answer
    waits: np.ndarray  # seconds of them in which nobody worked for the request
    mean_batch: float  # of the network
    seconds: float  # that passed

    @property
    def latency_ms(self) -> dict[str, float]:
        return {name: 1e3 * float(np.percentile(self.latencies, share)) for name, share in PERCENTILES.items()}


def open_loop(replica: Replica, rate: float, requests: int, replicas: int = 1, seed: int = 0) -> Simulated:
    """Poisson arrivals of `rate` a second. With several replicas each request goes to that of two, drawn by chance,
    which has fewer under way (Mitzenmacher, IEEE TPDS 2001; Envoy's and gRPC's least_request)."""
    rng = random.Random(seed)
    gaps = [rng.expovariate(1) for _ in range(requests)]  # the same for every rate: more load is never faster by chance
    return _run(replica, [moment / rate for moment in accumulate(gaps)], replicas, requests, False, rng)


def closed_loop(replica: Replica, callers: int, requests: int, seed: int = 0) -> Simulated:
    """`callers` at once, each of whom asks again when it has its answer."""
    return _run(replica, [0.0] * callers, 1, requests, True, random.Random(seed))


def most(replica: Replica) -> float:
    """Requests a second that it can answer."""
    found = closed_loop(replica, FULL * replica.max_batch, REQUESTS_FULL)
    return len(found.latencies) / found.seconds


def _run(
    replica: Replica, arrivals: list[float], replicas: int, requests: int, again: bool, rng: random.Random
) -> Simulated:
    """arrivals: ascending. again: whoever has its answer arrives once more."""
    events: list[tuple[float, int, Station, Group | Batch]] = []  # what ends when; no two have the same number
    numbers = count()

    def push(end: float, station: Station, what: Group | Batch) -> None:
        heappush(events, (end, next(numbers), station, what))

    stations = [Station(replica, push, rng) for _ in range(replicas)]
    due = arrivals  # a heap
    latencies: list[float] = []
    waits: list[float] = []
    skipped, begun, now, batches, in_batches = int(WARM_UP * requests), 0.0, 0.0, 0, 0
    while len(latencies) < requests:
        # Whoever arrives as a batch ends is late for the next one, which begins then: its way is longer.
        if due and not (events and events[0][0] <= due[0]):
            now = heappop(due)
            _choose(stations, rng).arrive(now)
            continue
        now, _, station, what = heappop(events)
        if isinstance(what, Group):
            station.prepared(now, what)
            continue
        if len(latencies) >= skipped:
            begun = begun or now
            batches += 1
            in_batches += sum(len(group.arrivals) for group in what.groups)
        for group in what.groups:
            worked = group.seconds + what.seconds
            latencies += [now - arrived for arrived in group.arrivals]
            waits += [now - arrived - worked for arrived in group.arrivals]
            if again:
                for _ in group.arrivals:
                    heappush(due, now)
        station.answered(now, what)
    kept = slice(skipped, requests)
    return Simulated(np.array(latencies[kept]), np.array(waits[kept]), in_batches / batches, now - begun)


def _choose(stations: Sequence[Station], rng: random.Random) -> Station:
    """That of two, drawn by chance, with fewer requests under way."""
    if len(stations) == 1:
        return stations[0]
    one, other = stations[int(len(stations) * rng.random())], stations[int(len(stations) * rng.random())]
    return other if other.under_way < one.under_way else one
