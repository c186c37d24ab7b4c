"""The messages that are being received: how long each may take, and how many may be half here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from serving.front.refusal import Refused
from serving.limits import Limits
from serving.record import Outcome

MOST_SECONDS = 30.0  # for one message
GRACE = 5.0  # seconds in which nobody is sent away,
MOST_AWAITED = 256  # but where so many wait for a message: far fewer than the calls that gRPC takes at a time


class Reading:
    """Nobody can fill the memory with messages that never end: where many are half here, the slowest are given up.

    Nor can anybody keep others out with calls and streams that say nothing.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = max(1, limits.max_held // limits.max_message)
        self._started: dict[asyncio.Timeout, float] = {}  # oldest first

    async def read(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """The next message; None where there is no more. Refused where it does not come in time."""
        now = asyncio.get_running_loop().time()
        many = len(self._started) + 1
        for place, (slow, since) in enumerate(list(self._started.items())):
            if place < many - MOST_AWAITED or (place < many - self._most and since < now - GRACE):
                del self._started[slow]  # one that expires cannot be told again
                slow.reschedule(now)
        try:
            async with asyncio.timeout(MOST_SECONDS) as timeout:
                self._started[timeout] = now
                try:
                    return await anext(messages, None)
                finally:
                    self._started.pop(timeout, None)
        except TimeoutError:
            if (timeout.when() or now) < now + min(GRACE, MOST_SECONDS):
                told = f"busy: {MOST_AWAITED} newer calls and streams wait for a message; retry after 1 s"
                raise Refused(Outcome.BUSY, told, 1.0) from None
            raise Refused(Outcome.DEADLINE, "the message came too slowly") from None
