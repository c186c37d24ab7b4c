"""The two ways to load a server: callers who wait for their answer, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import NamedTuple

OK, WRONG = "OK", "WRONG"  # beside these, a request ends with the name of gRPC's status

Send = Callable[[int], Awaitable[str]]  # the number of a request -> how it ended
Progress = Callable[[], object]  # called whenever a request has ended


class Sample(NamedTuple):
    """One request."""

    seconds: float  # until its answer: in the open loop from when it was due, not from when it was sent
    status: str


class Length(NamedTuple):
    """How long a stage lasts: a number of requests where one is given, else seconds."""

    seconds: float
    requests: int | None = None

    def tickets(self) -> Iterator[int]:
        """Numbers of requests, until the stage is over."""
        end = time.perf_counter() + self.seconds
        for number in count():
            if number >= self.requests if self.requests is not None else time.perf_counter() >= end:
                return
            yield number

    def arrivals(self, rate: float, seed: int) -> Iterator[float]:
        """Seconds after the start at which requests arrive: a Poisson process of `rate` a second."""
        rng, due = random.Random(seed), 0.0
        for number in count():
            due += rng.expovariate(rate)
            if number >= self.requests if self.requests is not None else due >= self.seconds:
                return
            yield due


async def closed_loop(send: Send, callers: int, length: Length, progress: Progress) -> list[Sample]:
    """`callers` at once, each of whom asks again when it has its answer."""
    tickets, samples = length.tickets(), []

    async def call() -> None:
        for number in tickets:
            start = time.perf_counter()
            status = await send(number)
            samples.append(Sample(time.perf_counter() - start, status))
            progress()

    await asyncio.gather(*(call() for _ in range(callers)))
    return samples


async def open_loop(send: Send, arrivals: Iterator[float], progress: Progress) -> list[Sample]:
    """Each request goes out when it is due, whatever has become of those before it.

    Its time counts from then: a server that makes others wait, or a client that is late, cannot hide it
    ("coordinated omission").
    """
    start, samples = time.perf_counter(), []

    async def call(number: int, due: float) -> None:
        status = await send(number)
        samples.append(Sample(time.perf_counter() - start - due, status))
        progress()

    async with asyncio.TaskGroup() as tasks:
        for number, due in enumerate(arrivals):
            await asyncio.sleep(start + due - time.perf_counter())
            tasks.create_task(call(number, due))
    return samples
