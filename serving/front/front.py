"""The front: everything that a client of `upsnet serve` can reach."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from serving.backend import Backend
from serving.front.admission import Admission
from serving.front.grpc_front import GrpcFront
from serving.front.http_front import HttpFront
from serving.front.settings import FrontSettings as FrontSettings
from serving.record import Telemetry

CLOSE_SECONDS = 1.0  # in which the last answers reach their callers


class Front:
    """gRPC, the operators' HTTP and, where it is asked for, REST, before one Triton server."""

    def __init__(self, backend: Backend, settings: FrontSettings, telemetry: Telemetry) -> None:
        self._admission = Admission(settings.limits, backend, telemetry)
        self._grpc = GrpcFront(backend, settings, telemetry, self._admission)
        self._http = HttpFront(backend, settings, telemetry, self._admission)

    async def start(self) -> dict[str, int]:
        """The ports that it listens on, by name. InputError where one cannot be had."""
        ports = {"grpc": await self._grpc.start()}
        try:
            return ports | await self._http.start()
        except BaseException:
            await self._grpc.stop(0)
            raise

    async def stop(self, seconds: float) -> None:
        """Refuses what is new, and gives what was accepted these seconds to end."""
        self._admission.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._admission.idle(), seconds)
        seconds = min(seconds, CLOSE_SECONDS)  # connections that say nothing, or read slowly, are not waited for
        await asyncio.gather(self._grpc.stop(seconds), self._http.stop(seconds))
