"""Addresses of servers, and servers that say anything at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Queue

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.mutations import damaged, fuzzed, refused
from upsnet.runtimes.address import check_grpc, parse_address

PARTS = ["grpc://", "http://", "https://", "//", "127.0.0.1", "localhost", "[", "::1", "]", ":", "8001", "0", "65536"]
MORE = ["/", "/v2", "?", "#", "@", "me:pw", " ", "\n", "\0", "%", "é", "\ud800", "٣", "-", ".", "..", "9" * 5000]
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ANSWERS = [
    SETTINGS,
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"SSH-2.0-x\r\n",
    b"\x15\x03\x01\0\2\2\x46",
    b'{"name":"triton"}',
    b"\n\n",
]


@fuzzed(300)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*PARTS, *MORE]), max_size=7).map("".join)))
@example("\x85:8001")
def test_addresses(url: str) -> None:
    with refused("a server is grpc://host:port"):
        address = parse_address(url)
        assert parse_address(f"grpc://{address}/") == address
        host, _, port = address.rpartition(":")
        assert host and 1 <= int(port) <= 65535


@pytest.fixture(scope="module")
def babbler() -> Iterator[tuple[str, Queue[bytes]]]:
    """The address of a server that tells everybody what was put last into the queue, and hangs up."""
    words: Queue[bytes] = Queue()

    def answer() -> None:
        said = b""
        while server.fileno() >= 0:
            with suppress(OSError):  # it closes first, or the tests are over
                connection, _ = server.accept()
                with connection:
                    said = said if words.empty() else words.get()
                    connection.sendall(said)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", words


@fuzzed(60)
@given(st.one_of(st.binary(max_size=80), st.sampled_from(ANSWERS).flatmap(damaged), st.sampled_from(ANSWERS)))
def test_answers(babbler: tuple[str, Queue[bytes]], said: bytes) -> None:
    address, words = babbler
    words.put(said)
    with refused(address, "gRPC"):
        check_grpc(address, seconds=5)
        assert said[3:4] == SETTINGS[3:4]
