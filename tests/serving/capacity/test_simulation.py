from __future__ import annotations

import math

import numpy as np
import pytest

from serving.capacity.replica import POINTS, Replica, log_normal, variation_of
from serving.capacity.simulation import closed_loop, most, open_loop
from tests.serving.capacity.formulas import mean_seconds_of_two_choices, mean_wait, mean_wait_of_batches

EXPONENTIAL = variation_of(-np.log(1 - (np.arange(POINTS) + 0.5) / POINTS))
TIMES = {"constant": (1.0,), "log-normal": variation_of(log_normal(1, 3)), "exponential": EXPONENTIAL}
SECONDS = 0.02


def squared(variation: tuple[float, ...]) -> float:
    return float(np.var(variation))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_one_server(name: str, utilisation: float) -> None:
    """Pollaczek and Khinchine's formula."""
    rate = utilisation / SECONDS
    found = open_loop(Replica(photo_seconds=SECONDS, variation=TIMES[name]), rate, 60_000)
    wanted = mean_wait(rate, SECONDS, variation=squared(TIMES[name]))
    assert found.waits.mean() == pytest.approx(wanted, rel=0.12)
    assert found.latencies.mean() == pytest.approx(wanted + SECONDS, rel=0.05)
    assert found.mean_batch == 1


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_percentiles_of_one_server_with_exponential_times(utilisation: float) -> None:
    found = open_loop(Replica(photo_seconds=SECONDS, variation=EXPONENTIAL), utilisation / SECONDS, 60_000)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        wanted = -math.log(1 - share) * SECONDS / (1 - utilisation)
        assert found.latency_ms[name] == pytest.approx(1e3 * wanted, rel=0.1)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("servers", [2, 4])
def test_several_servers(name: str, servers: int) -> None:
    """Allen and Cunneen's formula, an approximation where times are not exponential."""
    rate = 0.8 * servers / SECONDS
    replica = Replica(takers=servers, prepare_seconds=SECONDS, photo_seconds=0, variation=TIMES[name])
    wanted = mean_wait(rate, SECONDS, servers, squared(TIMES[name]))
    assert open_loop(replica, rate, 60_000).waits.mean() == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("rate", [20, 60, 85])
def test_batches(rate: float) -> None:
    replica = Replica(max_batch=4, batch_seconds=0.02, photo_seconds=0.005)
    found = open_loop(replica, rate, 60_000)
    assert found.waits.mean() == pytest.approx(mean_wait_of_batches(rate, replica.seconds, 4), rel=0.08)
    assert open_loop(replica.model_copy(update={"max_batch": 1}), 20, 1000).mean_batch == 1


def test_the_shorter_of_two_queues() -> None:
    replica = Replica(photo_seconds=SECONDS, variation=EXPONENTIAL)
    found = open_loop(replica, 200 * 0.8 / SECONDS, 60_000, replicas=200)
    assert found.latencies.mean() == pytest.approx(mean_seconds_of_two_choices(0.8, SECONDS), rel=0.04)


@pytest.mark.parametrize(
    ("replica", "callers", "batches"),
    [
        (Replica(max_batch=4, batch_seconds=0.02, photo_seconds=0.005), 2, [1, 1]),
        (Replica(max_batch=4, batch_seconds=0.02, photo_seconds=0.005), 4, [1, 3]),
        (Replica(max_batch=4, batch_seconds=0.02, photo_seconds=0.005), 16, [4, 4, 4, 4]),
        # Two takers, of which one waits for the processor: measured with a real Triton, 2.6 on average.
        (Replica(takers=2, instances=2, max_batch=4, batch_seconds=0.02, photo_seconds=0.005), 8, [4, 3, 1]),
        # Four of them, and one network: what three bring becomes one batch.
        (Replica(takers=4, max_batch=4, batch_seconds=0.02, photo_seconds=0.005), 4, [1, 3]),
    ],
)
def test_callers_who_wait(replica: Replica, callers: int, batches: list[int]) -> None:
    """Which batches come in turn was worked out by hand."""
    found = closed_loop(replica, callers, 6000)
    seconds = sum(map(replica.seconds, batches))
    assert len(found.latencies) / found.seconds == pytest.approx(callers / seconds, rel=0.01)
    assert found.mean_batch == pytest.approx(callers / len(batches), rel=0.01)
    assert found.latencies.mean() == pytest.approx(seconds, rel=0.01)  # Little's law


def test_what_it_can_answer() -> None:
    assert most(Replica(max_batch=4, batch_seconds=0.02, photo_seconds=0.005)) == pytest.approx(100, rel=0.01)
    decoding = Replica(takers=2, max_batch=4, prepare_seconds=0.1, photo_seconds=0.001)
    assert most(decoding) == pytest.approx(2 / 0.1, rel=0.05)  # the processor has nothing to do


def test_more_load_is_never_faster_and_the_same_load_is_the_same() -> None:
    replica = Replica(photo_seconds=SECONDS, variation=EXPONENTIAL)
    found = [open_loop(replica, rate, 5000).latency_ms for rate in (10, 20, 30, 40, 45)]
    for name in ("p50", "p95", "p99"):
        values = [each[name] for each in found]
        assert values == sorted(values)
    assert open_loop(replica, 30, 5000).latency_ms == found[2] != open_loop(replica, 30, 5000, seed=1).latency_ms


def test_a_log_normal_time_has_its_percentiles() -> None:
    times = log_normal(20, 50)
    assert (np.percentile(times, 50), np.percentile(times, 99)) == pytest.approx((20, 50), rel=0.01)
    assert np.mean(variation_of(times)) == pytest.approx(1)
    assert set(log_normal(20, 20)) == {20}
