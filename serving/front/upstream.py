"""The servers behind the front: one for each version that runs, each with a queue, limits and connections of its own.

So a version that is slow, broken or crowded takes nothing from another. Which there are, and which of them serves those
who name none, is asked of the fleet at each request: it changes between two of them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import grpc

from serving.backend import Backend, Fleet, Member, State
from serving.front.admission import IDLE_LOOK, Admission
from serving.front.refusal import Refused, of_triton
from serving.record import Outcome

TRITON = "/inference.GRPCInferenceService/"
UNLIMITED = 2**31 - 1
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", UNLIMITED),
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
NUMBER = re.compile(r"[0-9]{1,9}")  # of a version, as a request may name it


class Upstream:
    """The server of one version, and who is on the way to it. It lives as long as that server is kept."""

    def __init__(self, member: Member) -> None:
        self.version, self.backend, self.limits = member.version, member.backend, member.limits
        self.admission = Admission(member.limits, member.backend)
        self.closed = False
        self._calls = 0
        self._channel = grpc.aio.insecure_channel(member.backend.grpc_target, CHANNEL_OPTIONS)
        self._http: aiohttp.ClientSession | None = None

    @property
    def ready(self) -> bool:
        return self.backend.health.state == State.READY

    async def call(self, method: str, body: bytes, remaining: float | None) -> bytes:
        """Triton's answer by gRPC, in the rest of the caller's time. Where this is cancelled, so is Triton's work."""
        most = self.limits.max_seconds
        with self._calling():
            try:
                return await self._channel.unary_unary(TRITON + method)(
                    body, timeout=most if remaining is None else min(remaining, most), wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                refused = of_triton(error.code(), error.details() or "")
                if refused.outcome == Outcome.UNAVAILABLE:
                    self.backend.suspect(f"{method} failed: {error.details()}")
                raise refused from None

    @contextmanager
    def http(self) -> Iterator[aiohttp.ClientSession]:
        """Of Triton's HTTP, for a request to http://triton/."""
        with self._calling():
            if self._http is None:
                connector = aiohttp.UnixConnector(path=str(self.backend.http_socket), limit=0)
                plain = ["Accept-Encoding", "User-Agent"]
                self._http = aiohttp.ClientSession(
                    connector=connector, timeout=aiohttp.ClientTimeout(total=None), skip_auto_headers=plain
                )
            yield self._http

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """What is inside it ends with UNAVAILABLE where the version goes before it has its answer."""
        if self.closed:
            raise self._gone()
        self._calls += 1
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError):
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                raise self._gone() from None
            raise
        finally:
            self._calls -= 1

    def _gone(self) -> Refused:
        return Refused(Outcome.UNAVAILABLE, f"version {self.version} has been taken away; retry", 0.1)

    async def idle(self) -> None:
        """Returns when nobody waits for an answer of it."""
        await self.admission.idle()
        while self._calls:
            await asyncio.sleep(IDLE_LOOK)

    async def close(self) -> None:
        self.closed = True
        await self._channel.close()
        if self._http is not None:
            await self._http.close()


class Upstreams:
    """Of the versions of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._known: dict[Backend, Upstream] = {}  # those that leave, too
        self._draining = False

    @property
    def serving(self) -> Upstream:
        """Of the version in service."""
        return self._of(self.fleet.serving)

    @property
    def all(self) -> list[Upstream]:
        """Those that have had a request, and are kept."""
        return list(self._known.values())

    def find(self, version: str) -> Upstream:
        """Of the version that a request names; where it names none, of the one in service. Refused for any other."""
        if not version:
            return self.serving
        if not NUMBER.fullmatch(version):
            raise Refused(Outcome.INVALID, f"a version is a number from 1 on, not {version[:32]!a}")
        member = self.fleet.members.get(int(version))
        if member is not None:
            return self._of(member)
        if (why := self.fleet.failed.get(int(version))) is not None:
            raise Refused(Outcome.UNAVAILABLE, f"version {int(version)} does not run: {why}")
        there = " and ".join(map(str, self.running)) or "none"
        raise Refused(
            Outcome.INVALID, f"there is no version {int(version)}; there is {there}", code=grpc.StatusCode.NOT_FOUND
        )

    def ready(self, version: str = "") -> bool:
        """Whether a request that names it would be answered now."""
        try:
            return self.find(version).ready
        except Refused:
            return False

    @property
    def running(self) -> list[int]:
        """The versions that can be asked now. The one in service is among them, whatever its state."""
        serving = self.fleet.serving.version
        found = (each for each in self.fleet.members.values() if each.backend.health.state == State.READY)
        return sorted({serving, *(each.version for each in found)})

    def _of(self, member: Member) -> Upstream:
        found = self._known.get(member.backend)
        if found is None:
            found = self._known[member.backend] = Upstream(member)
            if self._draining:
                found.admission.drain()
        return found

    async def leave(self, member: Member) -> None:
        """Of a version that is no longer in the fleet: returns when those who were on the way to its server have their
        answers. Where this is cancelled, they are told to ask again."""
        upstream = self._known.get(member.backend)
        if upstream is not None:
            try:
                await upstream.idle()
            finally:
                self._known.pop(member.backend, None)
                await upstream.close()

    def drain(self) -> None:
        """From now on new requests are refused."""
        self._draining = True
        for upstream in self._known.values():
            upstream.admission.drain()

    async def idle(self) -> None:
        """Returns when every request that was let in has its answer."""
        for upstream in self.all:
            await upstream.admission.idle()

    async def close(self) -> None:
        for upstream in self.all:
            await upstream.close()
        self._known.clear()
