"""KServe v2 REST through the front: what reaches Triton, and what its caller is told."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from serving.backend import State
from serving.record import Outcome
from tests.serving.ops.fakes import LIMITS, Front, binary, inference

INFER = "/v2/models/upsnet/infer"


def test_binary_tensors_go_through_unchanged(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            reply = {"Inference-Header-Content-Length": "4", "Content-Type": "application/octet-stream", "X-Own": "1"}
            front.triton.reply = web.Response(body=b"{}  \0\1", headers=reply)
            body, header = binary(2, id="mine")
            code, headers, answer = await front.post(body, header, "traceparent: 00-" + "a" * 32)
            assert (code, answer) == (200, b"{}  \0\1")
            assert headers["Inference-Header-Content-Length"] == "4" and headers["X-Request-Id"] == "mine"
            assert "X-Own" not in headers and headers["Server"] == "upsnet"
            method, path, sent, received = front.triton.seen[0]
            assert (method, path, received) == ("POST", INFER, body)
            assert sent["Content-Length"] == str(len(body)) and "Transfer-Encoding" not in sent
            assert f"Inference-Header-Content-Length: {sent['Inference-Header-Content-Length']}" == header
            (record,) = front.telemetry.records
            assert (record.protocol, record.method, record.model) == ("http", "ModelInfer", "upsnet")
            assert (record.photos, record.pixels, record.outcome) == (2, 32, Outcome.OK)
            assert (record.bytes_in, record.bytes_out, record.request_id) == (len(body), 6, "mine")
            assert record.traceparent == "00-" + "a" * 32 and 0 < record.served <= record.total

    asyncio.run(run())


@pytest.mark.parametrize(("given", "kept"), [("a-b", True), ("x" * 129, False), ("a b", False), ("\u00e9", False)])
def test_a_callers_own_request_id(given: str, kept: bool, tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            _, headers, _ = await front.post(*binary(), f"X-Request-Id: {given}")
            assert (headers["X-Request-Id"] == given) == kept
            assert front.telemetry.records[0].request_id == headers["X-Request-Id"]

    asyncio.run(run())


@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize("call", ["", "/config", "/stats"])
def test_calls_that_read(tmp_path: Path, version: str, call: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            path = f"/v2/models/upsnet_photo{version}{call}"
            code, _, body = await front.ask(f"GET {path}?x=1 HTTP/1.1")
            assert code == 200 and json.loads(body)["path"] == path
            assert front.telemetry.records[0].model == "upsnet_photo"

    asyncio.run(run())


@pytest.mark.parametrize("state", list(State))
def test_ready_is_the_truth(tmp_path: Path, state: State) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            front.backend.health = front.backend.health._replace(state=state)
            for path in ("/v2/health/ready", "/v2/models/upsnet/ready", "/v2/models/upsnet_photo/versions/1/ready"):
                assert (await front.ask(f"GET {path} HTTP/1.1"))[0] == (200 if state == State.READY else 503)
            assert (await front.ask("GET /v2/health/live HTTP/1.1"))[0] == 200
            assert not front.triton.seen and not front.telemetry.records

    asyncio.run(run())


CLOSED = {
    "POST /v2/repository/models/evil/load": 403,
    "POST /v2/repository/models/upsnet/unload": 403,
    "POST /v2/repository/index": 403,
    "GET /v2/systemsharedmemory/status": 403,
    "POST /v2/systemsharedmemory/region/x/register": 403,
    "POST /v2/cudasharedmemory/region/x/register": 403,
    "POST /v2/logging": 403,
    "GET /v2/trace/setting": 403,
    "POST /v2/models/upsnet/trace/setting": 403,
    "POST /v2/models/upsnet/generate": 404,
    "POST /v2/models/upsnet/generate_stream": 404,
    "GET /v2/models/stats": 404,
    "GET /v2/models/other": 404,
    "POST /v2/models/other/infer": 404,
    "POST /v2/models/upsnet%2f..%2fother/infer": 404,
    "POST /v2/models/upsnet/versions/x/infer": 404,
    "POST /v2//models/upsnet/infer": 404,
    "GET /": 404,
    "GET /metrics": 404,
    "GET /v2/models/upsnet/infer": 405,
    "OPTIONS /v2/models/upsnet/infer": 405,
    "TRACE /v2": 405,
    "DELETE /v2/models/upsnet": 405,
}


@pytest.mark.parametrize("call", CLOSED)
def test_every_other_call_is_refused(tmp_path: Path, call: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            code, headers, body = await front.ask(f"{call} HTTP/1.1\nContent-Length: 2", b"{}")
            assert code == CLOSED[call]
            assert list(json.loads(body)) == ["error"] and "Access-Control-Allow-Origin" not in headers
            assert not front.triton.seen
            expected = Outcome.FORBIDDEN if code == 403 else Outcome.INVALID
            assert [record.outcome for record in front.telemetry.records] == [expected]
            assert front.telemetry.records[0].method == "other"

    asyncio.run(run())


def _changed(**changes: Any) -> bytes:
    request = inference()
    request["inputs"][0] |= changes
    return json.dumps(request).encode()


SHARED = {"shared_memory_region": "x", "shared_memory_byte_size": 48}
FAULTS = {
    "not JSON": (b"{", 400, "JSON"),
    "no object": (b"[]", 400, "object"),
    "no text": (b"\xff\xfe{\0}\0", 400, "JSON"),
    "deep": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "16 deep"),
    "key twice": (b'{"inputs": [], "inputs": []}', 400, "twice"),
    "shared memory": (_changed(parameters=SHARED), 403, "shared memory"),
    "escaped": (_changed(parameters=SHARED).replace(b"shared_", b"shared\\u005f"), 403, "shared memory"),
    "shared output": (
        json.dumps(inference(outputs=[{"name": "panoptic", "parameters": SHARED}])).encode(),
        403,
        "shared memory",
    ),
    "other parameter": (_changed(parameters={"x": 1}), 400, "binary_data_size"),
    "no list": (_changed(shape="x"), 400, "shape"),
    "negative": (_changed(shape=[-1, 4, 4, 3]), 400, "whole number"),
    "impossible": (_changed(shape=[1, 65536, 65536, 3]), 400, "impossible"),
    "huge": (_changed(shape=[1, 4096, 4096, 3]), 413, "4096 pixels"),
    "no datatype": (_changed(datatype=3), 400, "datatype"),
    "half a letter": (_changed(name="\ud800"), 400, "name"),
    "binary size": (_changed(parameters={"binary_data_size": 5}), 400, "binary_data_size"),
    "timeout": (json.dumps(inference(parameters={"timeout": "x"})).encode(), 400, "timeout"),
    "empty": (b"{}", 400, "it has no inputs"),
    "bytes in JSON": (_changed(name="photo", datatype="BYTES", data=["x"]), 400, "binary_data_size"),
    "no data": (json.dumps({"inputs": [{"name": "images", "shape": [1], "datatype": "UINT8"}]}).encode(), 400, "data"),
    "no list of inputs": (b'{"inputs": 1}', 400, "inputs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_requests(tmp_path: Path, fault: str) -> None:
    body, status, words = FAULTS[fault]

    async def run() -> None:
        async with Front(tmp_path) as front:
            code, _, answer = await front.post(body)
            message = json.loads(answer)["error"]
            assert code == status and words in message and "\n" not in message
            assert not front.triton.seen
            (record,) = front.telemetry.records
            assert record.outcome != Outcome.OK and record.message == message

    asyncio.run(run())


@pytest.mark.parametrize("length", ["-1", "x", "999999", "1e1", "\u0661", ""])
def test_faulty_header_length(tmp_path: Path, length: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            body, _ = binary()
            assert (await front.post(body, f"Inference-Header-Content-Length: {length}"))[0] == 400
            assert not front.triton.seen

    asyncio.run(run())


def test_photos_are_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    photo = struct.pack("<I", len(buffer.getvalue())) + buffer.getvalue()

    async def run() -> None:
        async with Front(tmp_path) as front:
            for count, status in ((2, 200), (3, 413)):
                parameters = {"binary_data_size": count * len(photo)}
                tensor = {"name": "photo", "shape": [count, 1], "datatype": "BYTES", "parameters": parameters}
                text = json.dumps({"inputs": [tensor]}).encode()
                header = f"Inference-Header-Content-Length: {len(text)}"
                code, _, _ = await front.post(text + count * photo, header, model="upsnet_photo")
                assert code == status
            record = front.telemetry.records[0]
            assert (record.model, record.photos, record.pixels) == ("upsnet_photo", 2, 1200)
            assert len(front.triton.seen) == 1

    asyncio.run(run())


def test_the_maps_that_are_asked_for_are_bounded(tmp_path: Path) -> None:
    def photo(size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        return struct.pack("<I", len(buffer.getvalue())) + buffer.getvalue()

    async def run() -> None:
        async with Front(tmp_path) as front:
            tail = photo((9000, 1)) + photo((1, 7000))
            parameters = {"binary_data_size": len(tail)}
            tensor = {"name": "photo", "shape": [2, 1], "datatype": "BYTES", "parameters": parameters}
            for outputs, status in (([], 413), ([{"name": "labels"}], 200)):
                text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
                header = f"Inference-Header-Content-Length: {len(text)}"
                code, _, answer = await front.post(text + tail, header, model="upsnet_photo")
                assert code == status, answer

    asyncio.run(run())


def test_too_much_json(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            code, _, body = await front.post(b" " * (1 << 20) + json.dumps(inference()).encode())
            assert code == 413 and "binary" in json.loads(body)["error"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (400, b'{"error": "images: 0 rows"}', (400, "images: 0 rows", Outcome.INVALID)),
        (500, b'{"error": "x\\nAt:\\n /srv/model.py(3): f"}', (500, "x", Outcome.FAILED)),
        (500, b"<html>", (500, "the model failed; its log has the reason", Outcome.FAILED)),
        (503, b'{"error": "unavailable"}', (503, "the server is restarting; retry", Outcome.UNAVAILABLE)),
        (400, b'{"error": "input \'Server not ready\'"}', (400, "input 'Server not ready'", Outcome.INVALID)),
        (
            500,
            b'{"error": "attempt to access JSON non-array"}',
            (400, "attempt to access JSON non-array", Outcome.INVALID),
        ),
        (
            500,
            b'{"error": "photo 1: Server not ready"}',
            (503, "the server is restarting; retry", Outcome.UNAVAILABLE),
        ),
        (
            500,
            b'{"error": "Stub process \'upsnet_0\' is not healthy."}',
            (503, "the server is restarting; retry", Outcome.UNAVAILABLE),
        ),
    ],
)
def test_errors_of_triton(tmp_path: Path, status: int, content: bytes, told: tuple[int, str, Outcome]) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            front.triton.reply = web.Response(status=status, body=content)
            code, headers, body = await front.post(*binary())
            record = front.telemetry.records[0]
            assert (code, json.loads(body)["error"], record.outcome) == told
            assert ("Retry-After" in headers) == (code == 503) == bool(front.backend.suspicions)

    asyncio.run(run())


def test_extensions_that_are_closed_are_not_offered(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            offered = {"name": "triton", "extensions": ["statistics", "model_repository", "trace", "logging"]}
            front.triton.reply = web.json_response(offered)
            code, _, body = await front.ask("GET /v2 HTTP/1.1")
            assert code == 200 and json.loads(body) == offered | {"extensions": ["statistics"]}

    asyncio.run(run())


def test_a_timeout_of_0_is_none(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            assert (await front.post(*binary(parameters={"timeout": 0})))[0] == 200

    asyncio.run(run())


def test_triton_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            (tmp_path / "h").unlink()
            code, headers, body = await front.post(*binary())
            assert code == 503 and headers["Retry-After"] == "1" and str(tmp_path) not in body.decode()
            assert len(front.backend.suspicions) == 1
            assert front.telemetry.records[0].outcome == Outcome.UNAVAILABLE

    asyncio.run(run())


def test_busy_deadline_and_a_caller_that_goes(tmp_path: Path) -> None:
    """One place at Triton and two in the queue: the next is refused, and who goes away gives its place back."""

    async def run() -> None:
        limits = LIMITS._replace(max_photos=1, instances=1, max_waiting=1)
        async with Front(tmp_path, limits) as front:
            front.triton.gate = asyncio.Event()
            body, header = binary()
            under_way = [asyncio.create_task(front.post(body, header)) for _ in range(limits.max_in_flight)]
            while len(front.triton.seen) < limits.max_in_flight:
                await asyncio.sleep(0.01)
            code, _, _ = await front.post(*binary(parameters={"timeout": 1000}))
            assert code == 504
            _, writer = await front.connect()
            head = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while front.upstreams.serving.admission.waiting < 1:
                await asyncio.sleep(0.01)
            code, headers, answer = await front.post(body, header)
            assert code == 429 and int(headers["Retry-After"]) >= 1 and b"busy" in answer
            writer.close()
            while front.upstreams.serving.admission.waiting:
                await asyncio.sleep(0.01)
            front.triton.gate.set()
            assert [(await each)[0] for each in under_way] == [200] * len(under_way)
            outcomes = [record.outcome for record in front.telemetry.records]
            assert outcomes[:2] == [Outcome.DEADLINE, Outcome.BUSY]
            assert outcomes.count(Outcome.CANCELLED) == 1 and outcomes.count(Outcome.OK) == len(under_way)
            assert len(front.triton.seen) == len(under_way)

    asyncio.run(run())
