"""The front: everything that a client of `upsnet serve` can reach."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from serving.backend import Fleet, Member
from serving.front.grpc_front import GrpcFront
from serving.front.http_front import HttpFront
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings as FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.upstream import Upstreams
from serving.record import Telemetry

CLOSE_SECONDS = 1.0  # in which the last answers reach their callers


class Front:
    """gRPC, the operators' HTTP and, where it is asked for, REST, before the servers of a fleet."""

    def __init__(
        self, fleet: Fleet, settings: FrontSettings, telemetry: Telemetry, sampling: Sampling | None = None
    ) -> None:
        self.upstreams = Upstreams(fleet)
        self._sampling = sampling or Sampling()
        self._shared = SharedMemory(settings.folder, settings.limits)
        self._grpc = GrpcFront(self.upstreams, self._shared, settings, telemetry, self._sampling)
        self._http = HttpFront(self.upstreams, self._shared, settings, telemetry, self._sampling)

    async def start(self) -> dict[str, int]:
        """The ports that it listens on, by name. InputError where one cannot be had."""
        ports = {"grpc": await self._grpc.start()}
        try:
            ports |= await self._http.start()
            await self._sampling.start()
        except BaseException:
            await self._grpc.stop(0)
            await self._http.stop(0)
            raise
        self._http.operators.ports = ports
        return ports

    async def leave(self, member: Member) -> None:
        """Of a version that the fleet has let go: returns when its server has nothing more to answer. Where this is
        cancelled, those who still wait for it are told to ask again."""
        try:
            await self.upstreams.leave(member)
        finally:
            self._shared.forget(member.backend)

    async def stop(self, seconds: float) -> None:
        """Refuses what is new, and gives what was accepted these seconds to end."""
        self.upstreams.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.upstreams.idle(), seconds)
        seconds = min(seconds, CLOSE_SECONDS)  # connections that say nothing, or read slowly, are not waited for
        await self._sampling.stop()
        await asyncio.gather(self._grpc.stop(seconds), self._http.stop(seconds))
        await self.upstreams.close()
