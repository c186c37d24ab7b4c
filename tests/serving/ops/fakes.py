"""What stands behind the HTTP front in its tests: a Triton that is an aiohttp server on unix sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from serving.backend import Health, State
from serving.front.http_front import HttpFront
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.tls import Tls
from serving.front.upstream import Upstreams
from serving.limits import Limits
from serving.record import Record
from tests.serving.front.fake import FakeFleet

LIMITS = Limits(max_pixels=64 * 64, max_photo_bytes=1 << 20, max_photos=2, max_waiting=2)
TRITON_METRICS = '# TYPE nv_inference_count counter\nnv_inference_count{model="upsnet",version="1"} 3\n'


class FakeTelemetry:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.records: list[Record] = []

    def finish(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


class FakeBackend:
    """Triton's sockets in a folder, and a health that tests set."""

    def __init__(self, folder: Path) -> None:
        self.grpc_target = f"unix:{folder / 'g'}"
        self.http_socket, self.metrics_socket = folder / "h", folder / "m"
        self.health = Health(State.READY, (), 1.7e9, 2, "ab" * 32, {"server": 100, "upsnet": 200})
        self.suspicions: list[str] = []

    async def wait_until_ready(self) -> None:
        while self.health.state != State.READY:
            await asyncio.sleep(0.01)

    def suspect(self, reason: str) -> None:
        self.suspicions.append(reason)


@dataclass
class FakeTriton:
    """Answers with `reply`, and keeps the requests that reach it."""

    folder: Path
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    reply: web.Response | None = None
    gate: asyncio.Event | None = None  # an answer waits for it
    metrics: str = TRITON_METRICS

    async def __aenter__(self) -> FakeTriton:
        self._runners = []
        for name, handler in (("h", self._http), ("m", self._tell)):
            runner = web.ServerRunner(web.Server(handler))
            await runner.setup()
            await web.UnixSite(runner, str(self.folder / name)).start()
            self._runners.append(runner)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.gate:
            self.gate.set()
        for runner in self._runners:
            await runner.cleanup()

    async def _http(self, request: web.BaseRequest) -> web.Response:
        self.seen.append((request.method, request.path, dict(request.headers), await request.read()))
        if self.gate:
            await self.gate.wait()
        if self.reply is not None:
            return web.Response(status=self.reply.status, body=self.reply.body, headers=self.reply.headers)
        return web.json_response({"name": "triton", "path": request.path})

    async def _tell(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=self.metrics)


class Front:
    """An HttpFront before a FakeTriton, both ports open."""

    def __init__(self, folder: Path, limits: Limits = LIMITS, http_port: int = 0, tls: Tls | None = None) -> None:
        self.backend, self.telemetry, self.triton = FakeBackend(folder), FakeTelemetry(), FakeTriton(folder)
        settings = FrontSettings("127.0.0.1", 0, http_port, 0, limits, folder, tls)
        self.fleet = FakeFleet(self.backend, limits)
        self.upstreams = Upstreams(self.fleet)
        shared = SharedMemory(folder, limits)
        self.front = HttpFront(self.upstreams, shared, settings, self.telemetry, Sampling())

    async def __aenter__(self) -> Front:
        await self.triton.__aenter__()
        self.ports = await self.front.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.front.stop(5)
        await self.upstreams.close()
        await self.triton.__aexit__()

    async def ask(self, head: str, body: bytes = b"", port: str = "http") -> tuple[int, dict[str, str], bytes]:
        return await ask(self.ports[port], head, body)

    async def connect(self, port: str = "http") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.ports[port])

    async def post(self, body: bytes, *headers: str, model: str = "upsnet") -> tuple[int, dict[str, str], bytes]:
        head = [f"POST /v2/models/{model}/infer HTTP/1.1", f"Content-Length: {len(body)}", *headers]
        return await self.ask("\n".join(head), body)


async def ask(port: int, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """One request as it is written here, on a connection of its own, and the answer to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = head.splitlines()
    if not any(line.lower().startswith("host:") for line in lines):
        lines.append(f"Host: 127.0.0.1:{port}")
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
    try:
        return parse(await asyncio.wait_for(reader.read(), 20))
    finally:
        writer.close()


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def inference(images: int = 1, side: int = 4, **more: Any) -> dict[str, Any]:
    """A request of the model `upsnet` in JSON."""
    pixels = [0] * (images * side * side * 3)
    tensors = [
        {"name": "images", "shape": [images, side, side, 3], "datatype": "UINT8", "data": pixels},
        {"name": "sizes", "shape": [images, 2], "datatype": "INT32", "data": [side, side] * images},
        {"name": "scales", "shape": [images, 1], "datatype": "FP32", "data": [1.0] * images},
    ]
    return {"inputs": tensors, **more}


def binary(images: int = 1, side: int = 4, **more: Any) -> tuple[bytes, str]:
    """The same with binary tensors: the body, and its header."""
    request, tail = inference(images, side, **more), b""
    for tensor, width in zip(request["inputs"], (1, 4, 4), strict=True):
        size = len(tensor.pop("data")) * width
        tensor["parameters"], tail = {"binary_data_size": size}, tail + bytes(size)
    text = json.dumps(request).encode()
    return text + tail, f"Inference-Header-Content-Length: {len(text)}"
