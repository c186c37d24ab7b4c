"""A whole front before several versions, each a Triton that does as it is told."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serving.backend import Member, Role, State
from serving.front.front import Front, FrontSettings
from serving.front.sampling import Sampling
from serving.limits import Limits
from tests.serving.front.fake import LIMITS, FakeBackend, FakeFleet, FakeTriton, Heard
from tests.serving.ops import fakes as http


class Version:
    """One of them, by gRPC and by HTTP."""

    def __init__(self, folder: Path, number: int, role: Role, limits: Limits) -> None:
        folder.mkdir()
        self.number = number
        self.backend = FakeBackend(folder)
        self.backend.set(State.READY, sha256=f"{number:064x}", memory={"server": 100 * number})
        self.grpc, self.http = FakeTriton(self.backend.grpc_target, str(number)), http.FakeTriton(folder)
        self.http.metrics = METRICS.format(number=number)
        self.member = Member(number, role, self.backend, limits)


METRICS = """# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{{model="upsnet",version="{number}"}} {number}
# HELP nv_cpu_utilization CPU utilization rate
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.{number}
# HELP upsnet_executed_batches_total Batches of a size that a model ran
# TYPE upsnet_executed_batches_total counter
upsnet_executed_batches_total{{model="upsnet",size="1"}} {number}
"""


class World:
    """A front, the fleet that it asks, and a client."""

    def __init__(self, folder: Path, sampling: Sampling | None) -> None:
        self.folder, self.heard = folder, Heard()
        self.versions: dict[int, Version] = {}
        self._made: list[Version] = []
        self._sampling = sampling
        self.ports: dict[str, int] = {}
        self.stub: Any = None

    async def add(self, number: int, role: Role = Role.CANDIDATE, limits: Limits = LIMITS, again: str = "") -> Version:
        made = self.versions[number] = Version(self.folder / f"{number}{again}", number, role, limits)
        self._made.append(made)
        await made.grpc.start()
        await made.http.__aenter__()
        if hasattr(self, "fleet"):
            self.fleet.members[number] = made.member
        return made

    async def start(self) -> None:
        self.fleet = FakeFleet(self.versions[1].backend, LIMITS)
        settings = FrontSettings("127.0.0.1", 0, 0, 0, LIMITS, self.folder)
        self.front = Front(self.fleet, settings, self.heard, self._sampling)
        self.ports = await self.front.start()

    async def stop(self) -> None:
        for each in self._made:
            each.grpc.gate.set()
        await self.front.stop(0)
        for each in self._made:
            await each.grpc.die()
            await each.http.__aexit__()

    def serve(self, number: int) -> None:
        """As a promotion, or a rollback, does it."""
        before = self.fleet.serving
        self.fleet.serving = self.fleet.members[number] = self.versions[number].member._replace(role=Role.SERVING)
        self.fleet.members[before.version] = before._replace(role=Role.STANDBY)

    async def infer(self, request: Any, version: str = "", **options: Any) -> Any:
        """Which version has answered."""
        request.model_version = version
        return (await self.stub.ModelInfer(request, **options)).model_version

    async def ask(self, method: str, **fields: Any) -> Any:
        return await getattr(self.stub, method)(getattr(pb, f"{method}Request")(**fields))

    async def http(self, head: str, body: bytes = b"", port: str = "http") -> tuple[int, dict[str, str], bytes]:
        return await http.ask(self.ports[port], head, body)


@asynccontextmanager
async def world(sampling: Sampling | None = None) -> AsyncIterator[World]:
    """Version 1 serves."""
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder), sampling)
        await made.add(1, Role.SERVING)
        await made.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{made.ports['grpc']}") as channel:
            made.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                yield made
            finally:
                await made.stop()
