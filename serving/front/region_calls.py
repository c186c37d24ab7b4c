"""The calls by which clients register and unregister shared memory, and what the servers are told of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import grpc
from tritonclient.grpc import service_pb2 as pb

from serving.front.refusal import Refused
from serving.front.requests import Region
from serving.front.shared_memory import SharedMemory
from serving.front.upstream import Upstream, Upstreams
from serving.record import Outcome

IN_USE = "it is currently in use"  # Triton, of a region, for a moment after the answer, too
LETTING_GO = (0.01, 0.03, 0.1, 0.3, 1.0)  # seconds between the times that it is told to unregister one
REGISTER, UNREGISTER = "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"

Remaining = Callable[[], float | None]  # seconds that the caller has left; None: it names no end


class InUse(Refused):
    """The region stays."""


class RegionCalls:
    """A region is registered with the server that needs it: that of the version which its client means to ask, and
    that of any other, or a restarted one, when a request in it comes."""

    def __init__(self, shared: SharedMemory, upstreams: Upstreams) -> None:
        self._shared, self._upstreams = shared, upstreams

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest, upstream: Upstream, remaining: Remaining
    ) -> bytes:
        file = self._shared.open_new(request)
        try:
            for idle in self._shared.idle():
                await self.unregister(idle, remaining)
            await upstream.admission.until_ready(remaining())
            answer = await upstream.call(REGISTER, request.SerializeToString(), remaining())
        except BaseException:
            os.close(file)
            raise
        self._shared.add(request, upstream.backend, upstream.backend.health.restarts, file)
        return answer

    async def tell(self, regions: tuple[Region, ...], upstream: Upstream, remaining: Remaining) -> None:
        """That server of the regions that it does not know."""
        restarts = upstream.backend.health.restarts
        for unknown in self._shared.unknown(regions, upstream.backend):
            file = self._shared.open_file(unknown)
            try:
                await upstream.call(REGISTER, unknown.SerializeToString(), remaining())
            except BaseException as error:
                if not isinstance(error, Refused) or error.code != grpc.StatusCode.ALREADY_EXISTS:
                    os.close(file)
                    raise  # else another request was faster
            self._shared.add(unknown, upstream.backend, restarts, file)

    async def unregister(self, name: str, remaining: Remaining) -> bytes:
        """With every server that knows it."""
        servers, failed = self._shared.servers(name), None
        for upstream in self._upstreams.all:
            if upstream.backend in servers:
                await upstream.admission.until_ready(remaining())
                try:
                    await self._let_go(name, upstream, remaining)
                except InUse:
                    raise
                except Refused as refused:  # the server that knew it has gone
                    failed = refused
        self._shared.remove(name)
        if failed is not None:
            raise failed
        return pb.SystemSharedMemoryUnregisterResponse().SerializeToString()

    async def _let_go(self, name: str, upstream: Upstream, remaining: Remaining) -> None:
        body = pb.SystemSharedMemoryUnregisterRequest(name=name).SerializeToString()
        waits = iter(LETTING_GO)
        while True:
            try:
                await upstream.call(UNREGISTER, body, remaining())
            except Refused as refused:
                if IN_USE not in refused.message:
                    raise
                if (wait := next(waits, None)) is None:
                    raise InUse(Outcome.INVALID, "a request uses that region") from None
                await asyncio.sleep(wait)
            else:
                return
