"""What a stranger may send to an HTTP port."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from serving.front.http_listener import why_not
from serving.front.tls import Tls
from serving.record import Outcome
from tests.serving.ops.fakes import LIMITS, Front, binary, parse

INFER = "POST /v2/models/upsnet/infer HTTP/1.1"


def test_a_large_body_is_refused_before_it_comes(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            for expect in ("", "\nExpect: 100-continue"):
                code, _, body = await front.ask(f"{INFER}\nContent-Length: {10**15}{expect}")
                assert code == 413 and str(LIMITS.max_message) in json.loads(body)["error"]
            assert [record.outcome for record in front.telemetry.records] == [Outcome.TOO_LARGE] * 2

    asyncio.run(run())


def test_expect_continue(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.connect()
            body, header = binary()
            head = f"{INFER}\r\nHost: localhost\r\n{header}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode())
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert parse(await reader.read())[0] == 200
            writer.close()

    asyncio.run(run())


def test_a_chunked_body_of_one_byte_chunks(tmp_path: Path) -> None:
    """Triton 24.10 dies of it. Here it is counted, and what is small enough arrives with a length."""

    async def run() -> None:
        async with Front(tmp_path, LIMITS._replace(max_photo_bytes=1 << 18)) as front:
            code, _, _ = await front.ask(f"{INFER}\nTransfer-Encoding: chunked", b"1\r\n[\r\n" * 600_000)
            assert code == 413
            body, header = binary()
            chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
            assert (await front.ask(f"{INFER}\n{header}\nTransfer-Encoding: chunked", chunks))[0] == 200
            _, _, headers, received = front.triton.seen[0]
            assert received == body and headers["Content-Length"] == str(len(body))
            assert "Transfer-Encoding" not in headers and len(front.triton.seen) == 1

    asyncio.run(run())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_a_compressed_body(tmp_path: Path, encoding: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            code, _, _ = await front.post(gzip.compress(bytes(1 << 20)), f"Content-Encoding: {encoding}")
            assert code == 415 and not front.triton.seen

    asyncio.run(run())


HEADS = {
    "no HTTP": "\x16\x03\x01\x02\x00",
    "a huge header": "GET /v2 HTTP/1.1\nX: " + "x" * 100_000,
    "a huge line": f"GET /{'x' * 100_000} HTTP/1.1",
    "many headers": "GET /v2 HTTP/1.1\n" + "\n".join(f"X{i}: 1" for i in range(1000)),
    "two lengths": f"{INFER}\nContent-Length: 1\nContent-Length: 2",
    "length and chunked": f"{INFER}\nContent-Length: 4\nTransfer-Encoding: chunked",
    "a negative length": f"{INFER}\nContent-Length: -1",
    "a length of words": f"{INFER}\nContent-Length: many",
    "a folded header": "GET /v2 HTTP/1.1\nX: 1\n folded",
}


@pytest.mark.parametrize("kind", HEADS)
def test_faulty_heads(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            code, _, body = await front.ask(HEADS[kind])
            assert code == 400 and b"Traceback" not in body
            assert not front.triton.seen
            assert (await front.ask("GET /v2 HTTP/1.1"))[0] == 200

    asyncio.run(run())
    assert capfd.readouterr() == ("", "")  # garbage does not fill the log


def test_slow_senders_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at all, headers that do not end, a body that does not end, and a connection kept after its answer."""
    monkeypatch.setattr("serving.front.http_listener.IDLE_SECONDS", 0.3)
    monkeypatch.setattr("serving.front.rest.BODY_SECONDS", 0.3)

    async def run() -> None:
        async with Front(tmp_path) as front:

            async def send(text: str) -> bytes:
                reader, writer = await front.connect()
                writer.write(text.replace("\n", "\r\n").encode())
                answer = await asyncio.wait_for(reader.read(), 20)
                writer.close()
                return answer

            texts = ["", "GET /v2 HTTP/1.1\nX: 1\n", f"{INFER}\nHost: [::1]:80\nContent-Length: 9\n\n12"]
            texts.append("GET /v2/health/live HTTP/1.1\nHost: localhost\n\n")
            answers = await asyncio.gather(*map(send, texts))
            assert answers[:2] == [b"", b""]
            assert parse(answers[2])[0] == 408 and b"did not come" in answers[2]
            assert parse(answers[3])[0] == 200

    asyncio.run(run())


def test_a_caller_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.rest.SEND_SECONDS", 0.3)

    async def run() -> None:
        async with Front(tmp_path) as front:
            front.triton.reply = web.Response(body=bytes(32 << 20))
            body, header = binary()
            _, writer = await front.connect()
            head = f"{INFER}\r\nHost: localhost\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while not front.telemetry.records:
                await asyncio.sleep(0.01)
            assert front.telemetry.records[0].outcome == Outcome.CANCELLED
            assert front.front._rest.held == 0
            writer.close()

    asyncio.run(run())


def test_half_sent_bodies_are_bounded_together(tmp_path: Path) -> None:
    async def run() -> None:
        limits = LIMITS._replace(max_held=2 * LIMITS.max_message)
        async with Front(tmp_path, limits) as front:
            writers = []
            for _ in range(2):
                _, writer = await front.connect()
                writer.write(f"{INFER}\r\nHost: localhost\r\nContent-Length: {limits.max_message}\r\n\r\nx".encode())
                writers.append(writer)
            while front.front._rest.held < limits.max_held:
                await asyncio.sleep(0.01)
            code, headers, _ = await front.post(*binary())
            assert code == 429 and headers["Retry-After"] == "1"
            for writer in writers:
                writer.close()
            while front.front._rest.held:
                await asyncio.sleep(0.01)
            assert (await front.post(*binary()))[0] == 200

    asyncio.run(run())


def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each has a request under way, the next is refused; the oldest that has none gives its place."""
    monkeypatch.setattr("serving.front.http_listener.MOST_CONNECTIONS", 3)

    async def run() -> None:
        async with Front(tmp_path) as front:
            front.triton.gate = asyncio.Event()
            busy = [asyncio.ensure_future(front.ask("GET /v2 HTTP/1.1")) for _ in range(2)]
            while len(front.triton.seen) < 2:
                await asyncio.sleep(0.01)
            oldest, _ = await front.connect()
            busy.append(asyncio.ensure_future(front.ask("GET /v2 HTTP/1.1")))
            with suppress(ConnectionError):
                assert await asyncio.wait_for(oldest.read(), 10) == b""
            while len(front.triton.seen) < 3:
                await asyncio.sleep(0.01)
            reader, _ = await front.connect()
            assert parse(await reader.read())[0] == 503
            assert (await front.ask("GET /health HTTP/1.1", port="metrics"))[0] == 200  # a port of its own
            front.triton.gate.set()
            assert [(await each)[0] for each in busy] == [200] * 3

    asyncio.run(run())


@pytest.mark.parametrize("port", ["http", "metrics"])
def test_who_only_connects_keeps_nobody_out(tmp_path: Path, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.http_listener.MOST_CONNECTIONS", 3)

    async def run() -> None:
        async with Front(tmp_path) as front:
            for _ in range(5):
                idle = [await front.connect(port) for _ in range(10)]
                path = "/health" if port == "metrics" else "/v2/health/ready"
                assert (await front.ask(f"GET {path} HTTP/1.1", port=port))[0] == 200
            while front.front._listeners[port].connections > 3:
                await asyncio.sleep(0.01)
            for _, writer in idle:
                writer.close()

    asyncio.run(run())


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.connect()
            heads = [f"GET /v2{tail} HTTP/1.1\r\nHost: localhost\r\n\r\n" for tail in ("", "/nothing") * 20]
            writer.write("".join(heads).encode() + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 20)
            codes = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
            assert codes == [200, 404] * 20 + [200]
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("port", ["http", "metrics"])
def test_web_pages_are_kept_out(tmp_path: Path, port: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            for header in ("Origin: http://localhost:3000", "Origin: null", "Host: evil.example:8000"):
                code, headers, _ = await front.ask(f"GET /health HTTP/1.1\n{header}", port=port)
                assert code == 403 and "Access-Control-Allow-Origin" not in headers
            assert not front.triton.seen
            told = [record.outcome for record in front.telemetry.records]
            assert told == ([Outcome.FORBIDDEN] * 3 if port == "http" else [])

    asyncio.run(run())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8000", "here", "here:8000"]
)
def test_hosts_that_are_ours(host: str) -> None:
    assert why_not({"Host": host}, "here") is None


@pytest.mark.parametrize("host", ["", "example.org", "127.0.0.1.example.org", "0.0.0.0", "localhost.evil", "[::2]:1"])
def test_hosts_that_are_not(host: str) -> None:
    assert why_not({"Host": host}, "127.0.0.1") is not None


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.http_listener.HANDSHAKE_SECONDS", 0.5)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")

    async def run() -> None:
        async with Front(tmp_path, tls=Tls(tmp_path / "cert.pem", tmp_path / "key.pem", None)) as front:
            reader, writer = await asyncio.open_connection("127.0.0.1", front.ports["http"], ssl=trusting)
            writer.write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert parse(await reader.read())[0] == 200
            writer.close()
            silent, _ = await front.connect()
            assert await silent.read() == b""  # no handshake in time
            assert (await front.ask("GET /health HTTP/1.1", port="metrics"))[0] == 200  # which has no secrets

    asyncio.run(run())


@pytest.mark.parametrize("sent", ["", "GET /v2 HTTP/1.1\r\n", "half a body"])
def test_stopping_does_not_wait_for_who_says_nothing(tmp_path: Path, sent: str) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.connect()
            head = f"{INFER}\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12"
            writer.write((head if sent == "half a body" else sent).encode())
            while sent == "half a body" and not front.front._rest.held:
                await asyncio.sleep(0.01)
            await asyncio.wait_for(front.front.stop(3600), 20)
            answer = await asyncio.wait_for(reader.read(), 20)
            assert parse(answer)[0] == 408 if sent == "half a body" else answer == b""
            writer.close()

    asyncio.run(run())


def test_stopping_gives_what_is_under_way_its_answer(tmp_path: Path) -> None:
    async def run() -> None:
        async with Front(tmp_path) as front:
            front.triton.gate = asyncio.Event()
            asked = asyncio.create_task(front.post(*binary()))
            while not front.triton.seen:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(front.front.stop(20))
            await asyncio.sleep(0)
            front.triton.gate.set()
            assert (await asked)[0] == 200
            await stopping

    asyncio.run(run())
