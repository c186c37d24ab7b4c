"""A port that speaks HTTP: bounded, closed to those who dawdle, and a way to keep web pages out."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from upsnet.errors import InputError, first_line

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

MOST_CONNECTIONS = 256
MOST_HEADERS, MOST_LINE = 64, 8190  # a request's headers, and the bytes of one of them
IDLE_SECONDS = 20.0  # of a connection whose next request has not come, or whose headers do not end
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 0.2  # of a connection whose request was cancelled
LINGER_SECONDS = 1.0  # in which a body that was refused may still come, so that its sender reads the answer
NAMED = {"Server": "upsnet"}  # aiohttp would name its version, and Python's
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
# aiohttp would write a traceback for each line of garbage that a stranger sends.
SILENT = logging.Logger("upsnet.http", logging.CRITICAL + 1)


class Listener:
    """An HTTP server on one port. The handler answers each request; it is cancelled when its caller goes away."""

    def __init__(self, handler: Handler, host: str, port: int, name: str, tls: ssl.SSLContext | None = None) -> None:
        self._handler, self._host, self._port, self._name, self._tls = handler, host, port, name, tls
        self._http: web.Server | None = None
        self._socket: asyncio.Server | None = None
        self._under_way: dict[asyncio.Task[object], object] = {}  # requests, and the connection of each

    @property
    def connections(self) -> int:
        return len(self._http.connections) if self._http else 0

    async def start(self) -> int:
        """The port that it listens on. InputError where that one cannot be had."""
        self._http = web.Server(
            self._answer,
            handler_cancellation=True,
            access_log=None,
            logger=SILENT,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_headers=MOST_HEADERS,
            max_line_size=MOST_LINE,
            max_field_size=MOST_LINE,
        )
        loop = asyncio.get_running_loop()
        host = "127.0.0.1" if self._host == "localhost" else self._host  # which may be two addresses: two free ports
        handshake = HANDSHAKE_SECONDS if self._tls else None
        try:
            self._socket = await loop.create_server(
                self._accept, host, self._port, ssl=self._tls, ssl_handshake_timeout=handshake
            )
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise InputError(
                f"--{self._name}-port {self._port}: {host} cannot be listened on: {reason}; give another, or 0"
            ) from error
        return self._socket.sockets[0].getsockname()[1]

    async def stop(self, seconds: float) -> None:
        """Accepts no more, closes what is idle, and gives the requests that are under way these seconds."""
        if self._socket is not None:
            self._socket.close()
        if self._http is None:
            return
        self._http.pre_shutdown()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)
        for task in self._under_way:
            task.cancel()
        await self._http.shutdown(CLOSE_SECONDS)

    def _accept(self) -> asyncio.Protocol:
        assert self._http is not None
        open_ones = [each for each in self._http.connections if each.transport is not None]
        if len(open_ones) >= MOST_CONNECTIONS:
            busy = set(self._under_way.values())
            idle = next((each for each in open_ones if each not in busy), None)
            if idle is None:
                return _Full()
            _cut(idle)  # the oldest gives its place: who only connects keeps nobody out
        return self._http()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._under_way[task] = request.protocol
        try:
            return await self._handler(request)
        finally:
            del self._under_way[task]


def _cut(connection: web.RequestHandler) -> None:
    assert isinstance(connection.transport, asyncio.WriteTransport)
    connection.transport.abort()
    connection.force_close()  # aiohttp forgets the transport


class _Full(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(FULL)
        transport.close()


def why_not(headers: Mapping[str, str], host: str) -> str | None:
    """What is wrong with a request that may be a web page's: a browser on this machine reaches the port, too.

    A page of elsewhere names its Origin; one whose own name was made to lead here (DNS rebinding) names that one.
    """
    if "Origin" in headers:
        return "a web page may not ask this server: requests with an Origin are refused"
    named = headers.get("Host", host).strip()
    name = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() and not named.endswith("]") else named
    if name.lower() in (host.lower(), "localhost") or _is_loopback(name.strip("[]")):
        return None
    return "this server answers to localhost and to loopback addresses alone; the Host of the request is another"


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def answer(status: int, content: Mapping[str, object], headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON."""
    text = json.dumps(content)
    return web.Response(status=status, text=text, content_type="application/json", headers={**NAMED, **(headers or {})})
