"""What hostile and clumsy clients do. Each action returns how it ended, and raises Harm where a server gave way.

That the server lives on, and that everybody else's answers stay right, is for those to see who run them (soak.py).
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import grpc
from tritonclient.grpc.service_pb2 import (
    CudaSharedMemoryRegisterRequest,
    LogSettingsRequest,
    ModelInferRequest,
    ModelRepositoryParameter,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
    TraceSettingRequest,
)

from serving.load_test.asking import OPTIONS, SERVICE
from serving.load_test.questions import photo_question
from tests.serving.soak import bombs
from tests.serving.soak.wire import connected, floods, grpc_call, http_post, http_status, post, say
from upsnet.contract import INPUTS, MODEL, OUTPUTS, PHOTO, PHOTO_MODEL

PATIENCE = 20.0  # seconds for an answer to what is refused
HELD = 3.0  # seconds for which a connection is left as it is
EVIL = b"raise SystemExit('this code ran in the server')\n"


class Harm(Exception):
    """The server did what nobody may make it do."""


class Target(NamedTuple):
    """A server that runs, and a good request."""

    grpc: str  # host:port
    http: tuple[str, ...]  # host:port of whatever speaks HTTP: operators' pages, and REST where it is on
    good: tuple[bytes, ...]  # messages of ModelInfer

    @property
    def ports(self) -> tuple[str, ...]:
        return (self.grpc, *self.http)


Action = Callable[[Target, random.Random], Coroutine[Any, Any, str]]


async def call(target: Target, method: str, message: bytes, timeout: float = PATIENCE) -> str:
    """The name of the status."""
    async with grpc.aio.insecure_channel(target.grpc, options=OPTIONS) as channel:
        try:
            await channel.unary_unary(SERVICE + method)(message, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if any(word in (error.details() or "") for word in ("Traceback", 'File "/', "/tmp/", ".py")):
                raise Harm(f"{method} tells of the inside: {error.details()}") from None
            return error.code().name
    return "OK"


async def refused(target: Target, method: str, message: bytes) -> str:
    status = await call(target, method, message)
    if status == "OK":
        raise Harm(f"{method} was accepted")
    return status


# Requests that cannot be answered


async def wrong_tensors(target: Target, rng: random.Random) -> str:
    """Types, shapes, names and contents that do not fit."""
    side = 96
    good = {
        INPUTS[0]: ("UINT8", [1, side, side, 3], bytes(side * side * 3)),
        INPUTS[1]: ("INT32", [1, 2], struct.pack("<ii", side, side)),
        INPUTS[2]: ("FP32", [1, 1], struct.pack("<f", 1)),
    }
    images, sizes, scales = INPUTS
    wrong = rng.choice(
        [
            {images: ("FP32", [1, side, side, 3], bytes(side * side * 12))},
            {images: ("UINT8", [1, side, side, 4], bytes(side * side * 4))},
            {images: ("UINT8", [1, 97, 97, 3], bytes(97 * 97 * 3))},
            {images: ("UINT8", [1, 1 << 20, 1 << 20, 3], bytes(100))},
            {images: ("UINT8", [1, -1, side, 3], bytes(side * side * 3))},
            {images: ("UINT8", [1, 0, side, 3], b"")},
            {images: ("UINT8", [2**62, 4, 4, 3], bytes(48))},
            {images: ("UINT8", [64, 32, 32, 3], bytes(64 * 32 * 32 * 3))},
            {images: ("BYTES", [1, side, side, 3], struct.pack("<I", 2**32 - 1) * 9)},
            {images: ("NONSENSE", [1, side, side, 3], bytes(side * side * 3))},
            {sizes: ("INT32", [1, 2], struct.pack("<ii", 10**9, -1))},
            {scales: ("FP32", [1, 1], struct.pack("<f", float("nan")))},
            {"other": ("FP32", [1, 1], bytes(4))},
        ]
    )
    request = ModelInferRequest(model_name=MODEL, model_version=rng.choice(["", "", "7", "../1"]))
    for name, (kind, shape, content) in (good | wrong).items():
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(content)
    for output in rng.choice([OUTPUTS, ["nothing"]]):
        request.outputs.add(name=output)
    return await refused(target, "ModelInfer", request.SerializeToString())


async def wrong_photo(target: Target, rng: random.Random) -> str:
    """Headers of 65536 x 65536, decompression bombs, damage."""
    return await refused(target, "ModelInfer", photo_question("", [rng.choice(list(bombs.photos().values()))]).message)


async def wrong_bytes_tensor(target: Target, rng: random.Random) -> str:
    """A photo whose length in front of it lies, and photos of another number than the shape says."""
    request = ModelInferRequest(model_name=PHOTO_MODEL)
    request.inputs.add(name=PHOTO, datatype="BYTES", shape=[rng.choice([1, 2, 4, 1000, 2**40]), 1])
    length = rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 5, 0])
    request.raw_input_contents.append(struct.pack("<I", length) + bytes(rng.choice([0, 3, 10_000])))
    return await refused(target, "ModelInfer", request.SerializeToString())


async def wrong_message(target: Target, rng: random.Random) -> str:
    """No message of the protocol at all; a model and a method that do not exist; somebody else's memory."""
    request = ModelInferRequest(model_name=rng.choice(["other", "../upsnet", "", "x" * 100_000]))
    region = ModelInferRequest(model_name=MODEL)
    tensor = region.inputs.add(name=INPUTS[0], datatype="UINT8", shape=[1, 96, 96, 3])
    tensor.parameters["shared_memory_region"].string_param = rng.choice(["upsnet", "../../etc/passwd", ""])
    tensor.parameters["shared_memory_byte_size"].int64_param = rng.choice([27648, 2**62, -1])
    method, message = rng.choice(
        [
            ("ModelInfer", rng.randbytes(rng.choice([1, 1000, 100_000]))),
            ("ModelInfer", b""),
            ("ModelInfer", request.SerializeToString()),
            ("ModelInfer", region.SerializeToString()),
            ("NoSuchMethod", b""),
        ]
    )
    return await refused(target, method, message)


# Callers who do not stay


async def cancelled(target: Target, rng: random.Random) -> str:
    """A good request whose caller goes."""
    async with grpc.aio.insecure_channel(target.grpc, options=OPTIONS) as channel:
        under_way = channel.unary_unary(SERVICE + "ModelInfer")(rng.choice(target.good))
        await asyncio.sleep(rng.uniform(0, 0.1))
        under_way.cancel()
    return "left"


async def impatient(target: Target, rng: random.Random) -> str:
    """A good request with next to no time."""
    return await call(target, "ModelInfer", rng.choice(target.good), timeout=rng.uniform(0.001, 0.05))


async def slow_reader(target: Target, rng: random.Random) -> str:
    """A good request whose answer is never read: the server may send nothing, and waits."""
    small = min(target.good, key=len)
    async with connected(target.grpc) as (_, writer):
        writer.write(grpc_call(small, window=0))
        await asyncio.sleep(rng.uniform(0, HELD))
    return "left"


async def idle_connections(target: Target, rng: random.Random) -> str:
    """Opened and left."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(_hold(rng.choice(target.ports), b""))
    return "left"


async def half_sent(target: Target, rng: random.Random) -> str:
    """The beginning of a good request, or of one that claims 1.5 GB; the rest never comes."""
    good = rng.choice(target.good)
    started = grpc_call(good[: rng.randrange(1, 30_000)], length=rng.choice([len(good) + 1, 1_500_000_000]), end=False)
    posted = http_post(f"/v2/models/{MODEL}/infer", b"{", length=rng.choice([5_000_000, 1_500_000_000]))
    places = [(target.grpc, started), *((place, posted) for place in target.http)]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(_hold(*rng.choice(places)))
    return "left"


async def _hold(address: str, words: bytes) -> None:
    try:
        async with connected(address) as (_, writer):
            writer.write(words)
            await asyncio.sleep(HELD)
    except OSError:
        return  # the server ended it, which is its right


# Bytes that are no request


async def garbage(target: Target, rng: random.Random) -> str:
    """On any port: noise, another protocol's greeting, half a greeting, lines and names that do not end."""
    words = rng.choice(
        [
            rng.randbytes(rng.choice([1, 100, 100_000])),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(1000),
            b"PRI * HTTP/2.0\r\n",
            b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % index for index in range(20_000)) + b"\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        ]
    )
    await say(rng.choice(target.ports), words, HELD)
    return "said"


async def one_byte_chunks(target: Target, rng: random.Random) -> str:
    """3 MB in chunks of one byte, over HTTP: enough to kill Triton 2.51."""
    head = http_post(f"/v2/models/{MODEL}/infer", b"", "Transfer-Encoding: chunked")
    return str(http_status(await post(rng.choice(target.http), head + bombs.one_byte_chunks(), PATIENCE)))


async def gzip_bomb(target: Target, rng: random.Random) -> str:
    """1 MB that becomes 1 GB, over HTTP and gRPC."""
    bomb = bombs.gzipped(1 << 30)
    place = rng.choice(target.ports)
    if place == target.grpc:
        await say(place, grpc_call(bomb, encoding="gzip"), HELD)
        return "said"
    return _not_ok(await post(place, http_post(f"/v2/models/{MODEL}/infer", bomb, "Content-Encoding: gzip"), PATIENCE))


async def flood(target: Target, rng: random.Random) -> str:
    """Thousands of HTTP/2's streams, resets, pings, settings and headers."""
    await say(target.grpc, rng.choice(list(floods(5000).values())), HELD)
    return "said"


# Calls that nobody may make


async def management(target: Target, rng: random.Random) -> str:
    """Models loaded with files of the caller's, unloaded, others' memory, the log's settings: over gRPC."""
    load = RepositoryModelLoadRequest(model_name="evil")
    load.parameters["config"].CopyFrom(ModelRepositoryParameter(string_param=_evil_config()))
    load.parameters["file:1/model.py"].CopyFrom(ModelRepositoryParameter(bytes_param=EVIL))
    log = LogSettingsRequest()
    log.settings["log_file"].string_param = "evil.log"
    trace = TraceSettingRequest()
    trace.settings["trace_file"].value.append("evil.trace")
    method, message = rng.choice(
        [
            ("RepositoryModelLoad", load),
            ("RepositoryModelLoad", RepositoryModelLoadRequest(model_name=MODEL)),
            ("RepositoryModelUnload", RepositoryModelUnloadRequest(model_name=MODEL)),
            ("LogSettings", log),
            ("TraceSetting", trace),
            ("SystemSharedMemoryRegister", SystemSharedMemoryRegisterRequest(name="x", key="/upsnet", byte_size=64)),
            ("SystemSharedMemoryUnregister", SystemSharedMemoryUnregisterRequest()),
            ("CudaSharedMemoryRegister", CudaSharedMemoryRegisterRequest(name="x", raw_handle=b"x", byte_size=64)),
        ]
    )
    return await refused(target, method, message.SerializeToString())


async def management_over_http(target: Target, rng: random.Random) -> str:
    """The same over HTTP, on every port that speaks it, and by crooked paths."""
    content = {"parameters": {"config": _evil_config(), "file:1/model.py": base64.b64encode(EVIL).decode()}}
    path, body = rng.choice(
        [
            ("/v2/repository/models/evil/load", content),
            (f"/v2/repository/models/{MODEL}/unload", {}),
            ("/v2/logging", {"log_file": "evil.log"}),
            ("/v2/trace/setting", {"trace_file": "evil.trace"}),
            (f"/v2/models/{MODEL}/trace/setting", {"trace_file": "evil.trace"}),
            ("/v2/systemsharedmemory/region/x/register", {"key": "/upsnet", "offset": 0, "byte_size": 64}),
            ("/v2/systemsharedmemory/unregister", {}),
            ("/v2/cudasharedmemory/region/x/register", {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 64}),
            ("/v2/repository/index", {}),
        ]
    )
    crooked: Sequence[str] = (
        path,
        path.replace("/v2/", "//v2//"),
        path.replace("/v2/", "/v2/health/../"),
        path.replace("/v2/", "/v2/models/%2e%2e/"),
        path.replace("re", "%72e"),
        f"http://localhost{path}",
    )
    words = http_post(rng.choice(crooked), json.dumps(body).encode(), "Connection: close")
    return _not_ok(await post(rng.choice(target.http), words, PATIENCE))


def _evil_config() -> str:
    return json.dumps({"name": "evil", "backend": "python", "max_batch_size": 0})


def _not_ok(answer: bytes) -> str:
    status = http_status(answer)
    if status == 200:
        raise Harm(f"accepted over HTTP: {answer[-200:]!r}")
    return str(status)


ACTIONS: tuple[Action, ...] = (
    wrong_tensors,
    wrong_photo,
    wrong_bytes_tensor,
    wrong_message,
    cancelled,
    impatient,
    slow_reader,
    idle_connections,
    half_sent,
    garbage,
    one_byte_chunks,
    gzip_bomb,
    flood,
    management,
    management_over_http,
)
