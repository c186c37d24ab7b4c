"""Connections below the libraries: what a well-made client cannot be brought to send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9  # frames of HTTP/2 (RFC 9113)
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4  # a setting
MOST_FRAME = 16384


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """To host:port. Ends with a reset, as a client that dies; the server may have ended it before."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def say(address: str, words: bytes, seconds: float, enough: bytes | None = None) -> bytes:
    """Send, and read for at most so long, until the server ends the connection, or until its answer holds `enough`.

    Reads while it sends: a server may answer before it has read all. A connection that is refused says nothing.
    """
    answer = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds), connected(address) as (reader, writer):
            writer.write(words)
            while (enough is None or enough not in answer) and (part := await reader.read(1 << 16)):
                answer += part
    return answer


async def post(address: str, request: bytes, seconds: float) -> bytes:
    """An HTTP request; the answer's head, at least."""
    return await say(address, request, seconds, enough=b"\r\n\r\n")


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + content


def header_block(fields: dict[str, str]) -> bytes:
    """HPACK (RFC 7541), each field as a literal that is never indexed; names and values of at most 126 characters."""
    block = b""
    for name, value in fields.items():
        block += b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


def call_fields(path: str) -> dict[str, str]:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    return fields | {"content-type": "application/grpc"}


def grpc_call(
    message: bytes,
    *,
    path: str = INFER,
    length: int | None = None,
    encoding: str = "",
    window: int = 65535,
    end: bool = True,
) -> bytes:
    """The bytes of a call, from the connection's first on.

    length: what the message's prefix claims. encoding: the message is compressed so. window: bytes of the answer that
    the server may send before it is told more. end: is it the whole message?
    """
    fields = call_fields(path) | ({"grpc-encoding": encoding} if encoding else {})
    prefix = struct.pack(">BI", bool(encoding), len(message) if length is None else length)
    parts = [prefix + message[: MOST_FRAME - len(prefix)]]
    parts += [
        message[start : start + MOST_FRAME] for start in range(MOST_FRAME - len(prefix), len(message), MOST_FRAME)
    ]
    frames = [frame(DATA, END_STREAM if end and part is parts[-1] else 0, 1, part) for part in parts]
    settings = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
    return PREFACE + settings + frame(HEADERS, END_HEADERS, 1, header_block(fields)) + b"".join(frames)


def floods(count: int) -> dict[str, bytes]:
    """What HTTP/2 allows, `count` times: by what it wears out."""
    block = header_block(call_fields(INFER))
    start = PREFACE + frame(SETTINGS, 0, 0, b"")
    streams = range(1, 2 * count, 2)
    reset = (0x8).to_bytes(4, "big")  # CANCEL
    opened = [frame(HEADERS, END_HEADERS, stream, block) for stream in streams]
    resets = [frame(RST_STREAM, 0, stream, reset) for stream in streams]
    return {
        "streams that are opened": start + b"".join(opened),
        "streams that are opened and reset": start + b"".join(a + b for a, b in zip(opened, resets, strict=True)),
        "pings": start + frame(PING, 0, 0, bytes(8)) * count,
        "settings": start + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 1)) * count,
        "headers that do not end": start
        + frame(HEADERS, 0, 1, block)
        + frame(CONTINUATION, 0, 1, header_block({"x": "y" * 100}) * 100) * (count // 100),
    }


def http_post(path: str, body: bytes, *more: str, length: int | None = None) -> bytes:
    """An HTTP/1.1 request; without a length where `more` has a Transfer-Encoding."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    if not any(line.lower().startswith("transfer-encoding") for line in more):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def http_status(answer: bytes) -> int:
    """0 where there was none."""
    words = answer.split(maxsplit=2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else 0
