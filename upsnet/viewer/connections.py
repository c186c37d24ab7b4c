"""The connections of browsers: so many at a time, and closed to those who dawdle."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from upsnet.viewer.guard import Guard, refusal

MOST_CONNECTIONS = 64
IDLE_SECONDS = 20.0  # of a connection whose next request has not come, or whose headers do not end
LINGER_SECONDS = 1.0  # in which a body that was refused may still come, so that its sender reads the answer


def _full() -> Guard:
    answer = refusal(503, "busy", "the viewer has too many connections; try again in a moment", 2)
    answer.headers["Connection"] = "close"
    return Guard(answer, local=False)


class Connection(H11Protocol):
    """uvicorn's, which would let a connection wait for its first request for ever, and read on what was refused."""

    waits_since = 0.0  # of the event loop's clock, where no request is under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(IDLE_SECONDS)
        if len(self.connections) <= MOST_CONNECTIONS:
            return
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self and each.waits]
        if others:  # who only connects keeps nobody out
            oldest = min(others, key=lambda each: each.waits_since)
            self.connections.discard(oldest)  # at once: the next one that comes finds another
            oldest.transport.abort()
        else:
            self.app = _full()  # type: ignore[assignment]

    @property
    def waits(self) -> bool:
        """For its next request."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Only the whole head of a request ends the time that it had: a part of one does not."""
        self.conn.receive_data(data)
        self.handle_events()
        if not self.waits:
            self._unset_keepalive_if_required()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.waits:  # the next one had come already
            self._unset_keepalive_if_required()
        elif not self.transport.is_closing():
            refused = self.conn.their_state is h11.SEND_BODY
            self._wait(LINGER_SECONDS if refused else IDLE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.waits_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
