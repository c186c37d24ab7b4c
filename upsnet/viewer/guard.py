"""What stands before the page: who may ask, how much, and what a browser may do with the answers."""

from __future__ import annotations

import asyncio
import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READ_SECONDS = 60.0  # for a photo
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), clipboard-read=(self), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class TooLarge(Exception):
    """A body of more bytes than are taken."""


class Guard:
    """ASGI: refuses what another web page sends, and puts HEADERS on every answer.

    A browser on this machine reaches the port for any page that it shows. A page of elsewhere names its Origin, and one
    whose own name was made to lead here (DNS rebinding) has that name as Host. local: only this machine is served;
    else the Host may be any address in numbers, which no name can pretend to be.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = why_not(Headers(scope=scope), self._local)
        app = refusal(403, "stranger", reason) if reason else self._app
        await app(scope, receive, send_guarded)


def why_not(headers: Headers, local: bool) -> str | None:
    """What is wrong with a request that may be of another web page; None: nothing."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if not _is_ours(name.strip("[]").lower(), local):
        return "the viewer answers to localhost and to addresses in numbers alone; the Host of the request is another"
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return "only the viewer's own page may ask it; the Origin of the request is another"
    elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if elsewhere and headers.get("sec-fetch-mode") != "navigate":  # a link to the page may be anywhere
        return "only the viewer's own page may ask it; another page asks for a part of it"
    return None


def _is_ours(name: str, local: bool) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not local


def refusal(status: int, kind: str, reason: str, retry_after: int | None = None) -> JSONResponse:
    """kind: what the page makes of it: "photo", "server", "busy", "forgotten", "stranger", "request"."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"kind": kind, "error": reason}, status, headers)


async def read_body(request: Request, most: int) -> bytes:
    """At most `most` bytes: TooLarge as soon as there are more, by the length that is told or by what has come.

    TimeoutError where it does not come in READ_SECONDS.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise TooLarge
    content = bytearray()
    async with asyncio.timeout(READ_SECONDS):
        async for chunk in request.stream():
            if len(content) + len(chunk) > most:
                raise TooLarge
            content += chunk
    return bytes(content)
