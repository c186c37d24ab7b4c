from __future__ import annotations

import asyncio
import time
from itertools import islice

from serving.load_test.loops import OK, Length, Sample, closed_loop, open_loop


def nothing() -> None:
    pass


def test_callers_wait_for_their_answer_and_no_request_is_asked_twice() -> None:
    under_way, most, asked = 0, 0, []

    async def send(number: int) -> str:
        nonlocal under_way, most
        asked.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return OK

    samples = asyncio.run(closed_loop(send, 3, Length(60, requests=10), nothing))
    assert most == 3
    assert asked == list(range(10))
    assert [sample.status for sample in samples] == [OK] * 10


def test_a_closed_loop_ends_after_its_seconds() -> None:
    async def send(_: int) -> str:
        await asyncio.sleep(0)
        return OK

    start = time.perf_counter()
    assert asyncio.run(closed_loop(send, 2, Length(0.05), nothing))
    assert time.perf_counter() - start >= 0.05


def test_an_open_loop_waits_for_nobody() -> None:
    """The first request is answered when the last one has been sent; a closed loop would wait for ever."""

    async def run() -> list[Sample]:
        last = asyncio.Event()

        async def send(number: int) -> str:
            if number == 4:
                last.set()
            await last.wait()
            return OK

        return await open_loop(send, iter([0.0] * 5), nothing)

    assert len(asyncio.run(asyncio.wait_for(run(), 60))) == 5


def test_a_pause_counts_for_all_that_were_due_in_it() -> None:
    """Coordinated omission: a loop that stands still for a second must not count its own late requests as fast."""

    async def send(number: int) -> str:
        if number == 0:
            time.sleep(0.3)
        return OK

    samples = asyncio.run(open_loop(send, (0.01 * number for number in range(10)), nothing))
    assert all(sample.seconds >= 0.2 for sample in samples)


def test_arrivals_are_those_of_a_poisson_process() -> None:
    length = Length(100, requests=20_000)
    arrivals = list(length.arrivals(50, seed=1))
    assert arrivals == list(length.arrivals(50, seed=1)) != list(length.arrivals(50, seed=2))
    assert len(arrivals) == 20_000
    gaps = [after - before for before, after in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.019 < mean < 0.021
    assert 0.95 < deviation / mean < 1.05  # of an exponential distribution it is 1


def test_without_a_number_arrivals_end_with_the_seconds() -> None:
    arrivals = list(Length(2).arrivals(100, seed=0))
    assert 100 < len(arrivals) < 300
    assert arrivals[-1] < 2
    assert len(list(islice(Length(2, requests=3).arrivals(0.01, seed=0), 9))) == 3
