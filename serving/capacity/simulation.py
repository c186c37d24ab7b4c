"""Replicas under load, request by request (a discrete-event simulation): no formula knows batches and their tails."""

from __future__ import annotations

import math
import random
from collections import deque
from heapq import heappop, heappush
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from serving.capacity.replica import Replica

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


class _Group:
    """Requests that a taker took at once; without takers, one."""

    __slots__ = ("arrivals", "more", "prepared", "preparing")

    def __init__(self, replica: Replica, arrivals: list[float], now: float, more: float) -> None:
        self.arrivals, self.more = arrivals, more
        self.preparing = (len(arrivals) + more) * replica.prepare_seconds
        self.prepared = now + self.preparing


class _Place:
    """A replica, and who is in it."""

    __slots__ = ("free_from", "instances", "prepared", "queue", "takers", "under_way")

    def __init__(self, replica: Replica) -> None:
        self.queue: deque[float] = deque()  # arrivals
        self.prepared: deque[_Group] = deque()
        self.takers = math.inf if replica.takers is None else replica.takers  # that are free
        self.instances = replica.instances  # that are free
        self.free_from = 0.0  # the processor
        self.under_way = 0  # requests


def _run(
    replica: Replica, arrivals: list[float], replicas: int, requests: int, again: bool, rng: random.Random
) -> Simulated:
    """arrivals: ascending. again: whoever has its answer arrives once more."""
    places = [_Place(replica) for _ in range(replicas)]
    most_taken = replica.max_batch if replica.takers is not None else 1
    # What happens next: when, its number, where; a group is prepared, or a batch has its answer.
    events: list[tuple[float, int, _Place, _Group | list[_Group]]] = []
    due = arrivals  # a heap
    durations = [replica.seconds(size) for size in range(replica.max_batch + 1)]
    variation = [factor - 1 for factor in replica.variation]
    latencies: list[float] = []
    waits: list[float] = []
    begun, now, batches, answered_in = 0.0, 0.0, 0, 0
    skipped, number = int(WARM_UP * requests), 0
    while len(latencies) < requests:
        # Whoever arrives as a batch ends is late for the next one, which begins then: its way is longer.
        if due and not (events and events[0][0] <= due[0]):
            now = heappop(due)
            place = places[0]
            if replicas > 1:
                place, other = places[int(replicas * rng.random())], places[int(replicas * rng.random())]
                place = other if other.under_way < place.under_way else place
            place.queue.append(now)
            place.under_way += 1
        else:
            now, _, place, what = heappop(events)
            if isinstance(what, _Group):
                place.prepared.append(what)
            else:
                place.instances += 1
                place.takers += len(what)
                if len(latencies) >= skipped:
                    begun = begun or now
                    batches += 1
                    answered_in += sum(len(group.arrivals) for group in what)
                for group in what:
                    place.under_way -= len(group.arrivals)
                    latencies += [now - arrived for arrived in group.arrivals]
                    if again:
                        for _ in group.arrivals:
                            heappush(due, now)
        while place.queue and place.takers:
            taken = [place.queue.popleft() for _ in range(min(len(place.queue), most_taken))]
            place.takers -= 1
            number += 1
            group = _Group(replica, taken, now, variation[int(len(variation) * rng.random())])
            if replica.prepare_seconds:
                heappush(events, (group.prepared, number, place, group))
            else:
                place.prepared.append(group)
        while place.prepared and place.instances:
            batch = [place.prepared.popleft()]
            size = len(batch[0].arrivals)
            while place.prepared and size + len(place.prepared[0].arrivals) <= replica.max_batch:
                batch.append(place.prepared.popleft())
                size += len(batch[-1].arrivals)
            place.instances -= 1
            number += 1
            needed = durations[size] + durations[1] * batch[0].more
            place.free_from = max(place.free_from, now) + needed
            for group in batch:
                worked = needed + group.preparing
                waits += [place.free_from - worked - arrived for arrived in group.arrivals]
            heappush(events, (place.free_from, number, place, batch))
    return Simulated(
        np.array(latencies[skipped:requests]), np.array(waits[skipped:requests]), answered_in / batches, now - begun
    )
