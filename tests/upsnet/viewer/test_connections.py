"""Connections that send nothing, too little or too much: they keep nobody from the page."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.upsnet.viewer.page import Page, running
from upsnet.viewer import app, connections

SLOW = b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nhalf"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with running([]) as opened:
        yield opened


def connect(page: Page) -> socket.socket:
    return socket.create_connection(("127.0.0.1", page.port), timeout=20)


def is_closed(connection: socket.socket, dribble: bytes = b"") -> bool:
    """Within 20 s, while it sends."""
    until = time.monotonic() + 20
    connection.settimeout(0.02)
    while time.monotonic() < until:
        with suppress(TimeoutError):
            try:
                connection.send(dribble)
                if not connection.recv(1000):
                    return True
            except ConnectionError:
                return True
    return False


@pytest.mark.parametrize(
    ("head", "dribble"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nX: ", b"y"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    ],
    ids=["nothing", "half a line", "headers without an end", "no second request"],
)
def test_a_connection_without_a_request_is_closed(
    page: Page, monkeypatch: pytest.MonkeyPatch, head: bytes, dribble: bytes
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    with connect(page) as silent:
        silent.sendall(head)
        assert is_closed(silent, dribble)


def test_a_request_that_takes_longer_is_not_cut(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    with connect(page) as slow:
        for _ in range(2):  # on one connection
            slow.sendall(SLOW)
            time.sleep(0.4)
            slow.sendall(bytes(5000 - len(b"half")))
            answer = http.client.HTTPResponse(slow)
            answer.begin()
            assert answer.status == 422 and answer.read()


def test_who_only_connects_keeps_nobody_out(page: Page) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(connect(page))
        for number in range(connections.MOST_CONNECTIONS + 5):
            stack.enter_context(connect(page))
            assert number % 10 or page.get("/").status == 200
        assert page.get("/api/models").status == 200
        assert is_closed(first)  # the oldest gives its place


def test_more_requests_than_connections_are_told_so_in_the_viewers_words(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with ExitStack() as stack:
        until = time.monotonic() + 20
        while (reply := page.get("/api/models")).status == 200:  # until two of them are being read
            stack.enter_context(connect(page)).sendall(SLOW)
            assert time.monotonic() < until
        assert (reply.status, reply.json()["kind"], reply.headers["Retry-After"]) == (503, "busy", "2")
        assert reply.headers["X-Content-Type-Options"] == "nosniff" and reply.headers["Cache-Control"] == "no-store"
        assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
    while page.get("/api/models").status != 200:  # they have gone
        assert time.monotonic() < until


@pytest.mark.parametrize("path", ["/api/photos", "/api/photos/x/answers?model=y"])
def test_what_was_refused_is_not_read_on(page: Page, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(app, "MOST_PHOTO_BYTES", 1000)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    with connect(page) as endless:
        endless.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode())
        assert is_closed(endless, b"3e9\r\n" + bytes(1001) + b"\r\n")
    assert page.get("/").status == 200
