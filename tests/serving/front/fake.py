"""A Triton that does as it is told, on a unix socket in this process, and a front before it."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serving.backend import Backend, Health, Member, Role, State
from serving.front.admission import Admission
from serving.front.grpc_front import GrpcFront
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.tls import Tls
from serving.front.upstream import Upstreams
from serving.limits import Limits
from serving.record import Record

LIMITS = Limits(max_pixels=4 * 64 * 64, max_photo_bytes=1 << 16, max_waiting=3, large_pixels=64 * 64)


class Heard:
    """A Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.registry = CollectorRegistry()

    def finish(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


class FakeBackend:
    """A Backend whose state a test sets."""

    def __init__(self, folder: Path) -> None:
        self.grpc_target = f"unix:{folder}/g"
        self.http_socket, self.metrics_socket = folder / "h", folder / "m"
        self.ready = asyncio.Event()
        self.suspicions: list[str] = []
        self.set(State.READY)

    def set(
        self,
        state: State,
        *reasons: str,
        since: float | None = None,
        restarts: int = 0,
        sha256: str = "",
        memory: dict[str, int] | None = None,
    ) -> None:
        began = time.time() if since is None else since
        self.health = Health(state, reasons, began, restarts, sha256, memory or {})
        (self.ready.set if state == State.READY else self.ready.clear)()

    async def wait_until_ready(self) -> None:
        await self.ready.wait()

    def suspect(self, reason: str) -> None:
        self.suspicions.append(reason)


class FakeFleet:
    """A Fleet that a test changes. At first version 1 serves."""

    rollouts = ""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.serving = Member(1, Role.SERVING, backend, limits)
        self.members = {1: self.serving}
        self.failed: dict[int, str] = {}


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers ModelInfer with the request's id and the bytes of its first input; waits while `gate` is closed."""

    def __init__(self, target: str, version: str = "1") -> None:
        self.target, self.version = target, version
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[str] = []  # ids, in the order of arrival
        self.cancelled: list[str] = []
        self.deadlines: list[float] = []  # seconds that were left; inf: all
        self.calls: list[str] = []
        self.holding = 0  # times that a region is still in use
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(self.target)
        await self.server.start()

    async def die(self) -> None:
        if self.server is not None:
            await self.server.stop(None)

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.seen.append(request.id)
        remaining = context.time_remaining()
        self.deadlines.append(math.inf if remaining is None else remaining)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.error is not None:
            await context.abort(*self.error)
        return pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=self.version,
            id=request.id,
            raw_output_contents=request.raw_input_contents[:1],
        )

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        self.calls.append("ServerMetadata")
        return pb.ServerMetadataResponse(name="triton", extensions=["model_configuration", "model_repository"])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.calls.append("ModelMetadata")
        return pb.ModelMetadataResponse(name=request.name, versions=[self.version])

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        self.calls.append("ModelStatistics")
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name="upsnet", version=self.version)])

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        self.calls.append("ModelConfig")
        return pb.ModelConfigResponse()

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        self.calls.append("RepositoryModelLoad")
        return pb.RepositoryModelLoadResponse()

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self.calls.append(f"register {request.name}")
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.calls.append(f"unregister {request.name}")
        if self.holding:
            self.holding -= 1
            text = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            await context.abort(grpc.StatusCode.INTERNAL, text)
        return pb.SystemSharedMemoryUnregisterResponse()


class Bench:
    """Everything that a test of the front holds."""

    def __init__(self, folder: Path, limits: Limits, tls: Tls | None, host: str) -> None:
        self.folder, self.backend, self.heard = folder, FakeBackend(folder), Heard()
        self.triton = FakeTriton(self.backend.grpc_target)
        self.fleet = FakeFleet(self.backend, limits)
        self.upstreams = Upstreams(self.fleet)
        self.shared = SharedMemory(folder, limits)
        settings = FrontSettings(host, 0, None, 0, limits, folder, tls)
        self.front = GrpcFront(self.upstreams, self.shared, settings, self.heard, Sampling())
        self.host, self.port = host, 0
        self.channel: Any = None
        self.stub: Any = None

    @property
    def admission(self) -> Admission:
        """Of the version in service."""
        return self.upstreams.serving.admission

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def infer(self, request: Any = None, **options: Any) -> Any:
        return await self.stub.ModelInfer(request or make_request(), **options)


@asynccontextmanager
async def bench(limits: Limits = LIMITS, tls: Tls | None = None, host: str = "127.0.0.1") -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        made = Bench(Path(folder), limits, tls, host)
        await made.triton.start()
        made.port = await made.front.start()
        async with grpc.aio.insecure_channel(made.address, [("grpc.max_receive_message_length", -1)]) as made.channel:
            made.stub = service_pb2_grpc.GRPCInferenceServiceStub(made.channel)
            try:
                yield made
            finally:
                made.triton.gate.set()
                await made.front.stop(0)
                await made.upstreams.close()
                await made.triton.die()


def make_request(name: str = "r", shape: tuple[int, ...] = (1, 32, 32, 3), model: str = "upsnet") -> Any:
    request = pb.ModelInferRequest(model_name=model, id=name)
    request.inputs.add(name="images", datatype="UINT8", shape=shape)
    request.raw_input_contents.append(bytes(int(np.prod(shape))))
    return request


def photo_request(*photos: bytes) -> Any:
    request = pb.ModelInferRequest(model_name="upsnet_photo", id="p")
    request.inputs.add(name="photo", datatype="BYTES", shape=(len(photos), 1))
    request.raw_input_contents.append(b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos))
    return request


async def until(true: Any, seconds: float = 10.0) -> None:
    """Waits for something that another task does."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
