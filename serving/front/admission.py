"""Whose turn it is: a bounded queue with two lanes, in front of Triton.

Triton runs what it is sent in order, and one large image takes as long as a hundred small ones. So the large requests
with Triton are always fewer than its instances while small ones come: an instance is left for those. Whoever waits here
costs no computing: it is forgotten when its deadline passes or its caller goes, and refused at once where many wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.backend import Backend, State
from serving.front.refusal import Refused
from serving.limits import Limits
from serving.record import Outcome, Record

QUIET = 5.0  # seconds without a small request after which large ones may have every instance
IDLE_LOOK = 0.05  # seconds
LEAST_RETRY = 0.1  # seconds
WEIGHT = 0.1  # of the newest request in the mean of the service times


class Lane:
    """The requests of one size."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, asyncio.Future[None]]] = deque()  # since when; the future is the turn
        self.in_flight = 0
        self.seconds = 0.0  # mean time with Triton
        self.last_seen = -math.inf

    def add(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) * (WEIGHT if self.seconds else 1)


class Admission:
    """Lets requests through to the Triton of one version, in the order of their arrival within a lane."""

    def __init__(self, limits: Limits, backend: Backend) -> None:
        self._limits, self._backend = limits, backend
        self._small, self._large = Lane(), Lane()
        self.held = 0  # bytes of the messages that are here: requests that wait, answers that are not read
        self._draining = False

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._small.waiting) + len(self._large.waiting)

    @property
    def in_flight(self) -> int:
        """Requests that are with Triton."""
        return self._small.in_flight + self._large.in_flight

    def drain(self) -> None:
        """From now on new requests are refused. Those that wait still get their turn."""
        self._draining = True

    async def idle(self) -> None:
        """Returns when every request that was let in has its answer."""
        while self.waiting or self.in_flight:
            await asyncio.sleep(IDLE_LOOK)

    @asynccontextmanager
    async def turn(self, record: Record, large: bool, seconds: float | None) -> AsyncIterator[None]:
        """Inside it the request may be sent to Triton. Raises Refused; fills record.queued and record.served.

        seconds: what is left until the caller's deadline; None is the limits' own.
        """
        self._refuse_at_once(record.bytes_in)
        lane = self._large if large else self._small
        lane.last_seen = arrived = time.monotonic()
        allowed = self._allowed(seconds)
        self.held += record.bytes_in
        try:
            async with self._place(lane, allowed):
                await self.until_ready(allowed - (time.monotonic() - arrived))
                begun = time.monotonic()
                yield
                record.served = time.monotonic() - begun
                lane.add(record.served)
        finally:
            self.held -= record.bytes_in
            record.queued = time.monotonic() - arrived - record.served

    def _refuse_at_once(self, size: int) -> None:
        if self._draining or self._backend.health.state in (State.DRAINING, State.STOPPED):
            raise Refused(Outcome.UNAVAILABLE, "the server is draining: it stops, and takes no new requests")
        full = self.held and self.held + size > self._limits.max_held
        if full or self.waiting >= self._limits.max_waiting:
            why = f"other requests and answers hold {self.held} bytes" if full else f"{self.waiting} requests wait"
            after = self._retry_after()
            raise Refused(Outcome.BUSY, f"busy: {why}; retry after {after:g} s", after)

    def _retry_after(self) -> float:
        """Seconds in which half of those who wait will have been served, by what was measured."""
        large = len(self._large.waiting) * self._large.seconds / max(1, self._limits.instances - 1)
        small = len(self._small.waiting) * self._small.seconds / self._limits.max_in_flight
        return max(LEAST_RETRY, math.ceil(5 * max(large, small)) / 10)

    @asynccontextmanager
    async def _place(self, lane: Lane, seconds: float) -> AsyncIterator[None]:
        """One of the places in flight, after waiting for it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append((time.monotonic(), turn))
        self._next()
        try:
            try:
                if not turn.done():
                    async with asyncio.timeout(seconds):
                        await turn
            except TimeoutError:
                raise self._too_late(seconds) from None
            yield
        finally:
            if turn.cancelled():
                lane.waiting = deque(entry for entry in lane.waiting if entry[1] is not turn)
            else:
                lane.in_flight -= 1
            self._next()

    def _next(self) -> None:
        """Gives turns to as many as may have one."""
        while lane := self._first():
            turn = lane.waiting.popleft()[1]
            if not turn.cancelled():
                turn.set_result(None)
                lane.in_flight += 1

    def _first(self) -> Lane | None:
        """The lane whose first request has waited longest, of those that may go on."""
        if self.in_flight >= self._limits.max_in_flight:
            return None
        lanes = [self._small] if self._large.in_flight >= self._most_large() else [self._small, self._large]
        return min((lane for lane in lanes if lane.waiting), key=lambda lane: lane.waiting[0][0], default=None)

    def _most_large(self) -> int:
        if self._small.in_flight or time.monotonic() - self._small.last_seen < QUIET:
            return max(1, self._limits.instances - 1)
        return 2 * self._limits.instances  # the next one is there when an instance is free

    async def until_ready(self, seconds: float | None) -> None:
        """Waits while the server restarts, but not for one that has been away for long."""
        health, allowed = self._backend.health, self._allowed(seconds)
        if health.state == State.READY:
            return
        try:
            async with asyncio.timeout(min(allowed, health.since + self._limits.max_restart - time.time())):
                await self._backend.wait_until_ready()
        except TimeoutError:
            raise self._too_late(allowed) from None

    def _allowed(self, seconds: float | None) -> float:
        return self._limits.max_seconds if seconds is None else min(seconds, self._limits.max_seconds)

    def _too_late(self, seconds: float) -> Refused:
        health = self._backend.health
        if health.state == State.READY:
            return Refused(Outcome.DEADLINE, f"its turn did not come within {seconds:.3g} s")
        why = "; ".join(health.reasons) or "it has not answered yet"
        return Refused(Outcome.UNAVAILABLE, f"the server is {health.state}: {why}; retry later", LEAST_RETRY)
