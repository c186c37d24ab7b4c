"""How many replicas a load needs, so that percentiles of the latency stay within their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from serving.capacity.replica import Replica
from serving.capacity.simulation import Simulated, open_loop
from upsnet.errors import InputError

SHARES = tuple(round(0.05 * number, 2) for number in range(1, 20))  # of what a replica can answer
REQUESTS, REQUESTS_ANSWER = 20_000, 50_000  # of a simulation: of the curve; of an answer
MANY, LEAST_EACH = 100, 500  # replicas that are simulated at most, and their requests at least
HALVINGS = 4  # between two points of the curve

Limits = Mapping[str, float]  # milliseconds, by "p95" and "p99"
Routing = Literal["by chance", "least requests"]  # each request to any replica; to that of two with fewer under way


class Forecast(BaseModel):
    """What a load does to replicas."""

    model_config = ConfigDict(frozen=True)

    rate: float  # requests a second, of all replicas together
    replicas: int
    routing: Routing
    utilisation: float  # the rate, as a share of what they can answer
    mean_batch: float
    waiting_ms: float  # mean
    latency_ms: dict[str, float]  # p50, p95, p99

    def within(self, limits: Limits) -> bool:
        return all(self.latency_ms[name] <= most for name, most in limits.items())


def forecast(replica: Replica, most: float, rate: float, replicas: int, routing: Routing, requests: int) -> Forecast:
    """most: what a replica can answer a second."""
    if routing == "by chance":  # a share of a Poisson process is one: each replica by itself
        found: Simulated = open_loop(replica, rate / replicas, requests)
    else:  # of a hundred it is the same as of any more
        fewer = min(replicas, MANY)
        found = open_loop(replica, rate * fewer / replicas, max(requests, LEAST_EACH * fewer), fewer)
    return Forecast(
        rate=rate,
        replicas=replicas,
        routing=routing,
        utilisation=rate / replicas / most,
        mean_batch=found.mean_batch,
        waiting_ms=1e3 * float(found.waits.mean()),
        latency_ms=found.latency_ms,
    )


def curve_of(replica: Replica, most: float, progress: Callable[[], object]) -> list[Forecast]:
    """Of one replica, by rates."""
    found = []
    for share in SHARES:
        found.append(forecast(replica, most, share * most, 1, "by chance", REQUESTS))
        progress()
    return found


def bearable(replica: Replica, most: float, curve: Sequence[Forecast], limits: Limits, max_utilisation: float) -> float:
    """The largest rate of one replica within the limits. InputError where there is none."""
    if not curve[0].within(limits):
        told = ", ".join(f"{name} {limit:g} ms" for name, limit in limits.items())
        found = ", ".join(f"{name} is {curve[0].latency_ms[name]:.1f} ms" for name in limits)
        raise InputError(f"no number of replicas keeps {told}: with hardly any load {found}")
    low, high = 0.0, max_utilisation * most
    for point in curve:
        if point.rate >= high:
            break
        if not point.within(limits):
            high = point.rate
            break
        low = point.rate
    if forecast(replica, most, high, 1, "by chance", REQUESTS).within(limits):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if forecast(replica, most, middle, 1, "by chance", REQUESTS).within(limits):
            low = middle
        else:
            high = middle
    return low


def plan(
    replica: Replica, most: float, rate: float, of_one: float, limits: Limits, max_utilisation: float
) -> list[Forecast]:
    """The least replicas for a rate, for each way of spreading the requests. of_one: what `bearable` says."""

    def answer(replicas: int, routing: Routing) -> Forecast:
        return forecast(replica, most, rate, replicas, routing, REQUESTS_ANSWER)

    enough = math.ceil(rate / of_one)
    while not (spread := answer(enough, "by chance")).within(limits):  # a longer simulation than that of of_one
        enough += 1
    few, many = math.ceil(rate / (max_utilisation * most)), enough
    balanced = answer(many, "least requests")
    while few < many:
        middle = (few + many) // 2
        found = answer(middle, "least requests")
        if found.within(limits):
            many, balanced = middle, found
        else:
            few = middle + 1
    return [spread, balanced]
