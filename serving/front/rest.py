"""KServe v2 REST, bounded and checked, before the HTTP of each version's Triton.

Triton 24.10 dies of a chunked body and takes any size, so nothing reaches it but what was read here whole, with a
length, to a path that is made here.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from typing import NamedTuple

import aiohttp
import grpc
from aiohttp import web

from serving.front.http_listener import NAMED, answer, why_not
from serving.front.refusal import RESTARTING, Refused, blame, clean
from serving.front.rest_request import HEADER_LENGTH, JSON, check
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.upstream import Upstream, Upstreams
from serving.record import Outcome, Record, Telemetry
from upsnet.contract import MODEL, PHOTO_MODEL

BODY_SECONDS = 30.0  # in which a body must have come
SEND_SECONDS = 30.0  # in which the caller must have read its answer
ASK_SECONDS = 10.0  # for what is no inference
MOST_ANSWER = 512 << 20  # bytes
EXTENSIONS = ("model_configuration", "binary_tensor_data", "parameters", "statistics")  # of KServe v2, not closed here
REQUEST_ID, IDENTIFIER = "X-Request-Id", re.compile(r"[!-~]{1,128}")  # a caller's own, which can be logged

STATUS = {
    Outcome.INVALID: 400,
    Outcome.TOO_LARGE: 413,
    Outcome.BUSY: 429,
    Outcome.DEADLINE: 504,
    Outcome.CANCELLED: 499,
    Outcome.FORBIDDEN: 403,
    Outcome.UNAVAILABLE: 503,
    Outcome.FAILED: 500,
}


logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """A call that may be made from outside."""

    path: re.Pattern[str]
    verb: str
    method: str  # as in gRPC


class Call(NamedTuple):
    """One that was made."""

    method: str
    model: str = ""
    version: str = ""  # that it names


_MODEL = rf"/v2/models/(?P<model>{MODEL}|{PHOTO_MODEL})(?:/versions/(?P<version>\d{{1,9}}))?"
ROUTES = (
    Route(re.compile("/v2"), "GET", "ServerMetadata"),
    Route(re.compile("/v2/health/live"), "GET", "ServerLive"),
    Route(re.compile("/v2/health/ready"), "GET", "ServerReady"),
    Route(re.compile(_MODEL), "GET", "ModelMetadata"),
    Route(re.compile(f"{_MODEL}/ready"), "GET", "ModelReady"),
    Route(re.compile(f"{_MODEL}/config"), "GET", "ModelConfig"),
    Route(re.compile(f"{_MODEL}/stats"), "GET", "ModelStatistics"),
    Route(re.compile(f"{_MODEL}/infer"), "POST", "ModelInfer"),
)
ELSEWHERE = re.compile("/v2/(repository|systemsharedmemory|cudasharedmemory|logging|trace|models/.*/trace)(/.*)?")


class HttpRefused(Refused):
    """A refusal whose status HTTP has a name for."""

    def __init__(self, outcome: Outcome, message: str, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(outcome, message)
        self.status, self.headers = status, headers or {}


class Held:
    """Bytes of one request that are in this process: its body, and its answer until the caller has read it."""

    def __init__(self, rest: Rest) -> None:
        self._rest, self._size = rest, 0

    def add(self, size: int) -> None:
        """Refused where all requests together would hold too much."""
        if self._rest.held and self._rest.held + size > self._rest.limits.max_held:
            raise Refused(Outcome.BUSY, "busy: too many bytes of other requests are here; retry after 1 s", 1.0)
        self._size += size
        self._rest.held += size

    def release(self) -> None:
        self._rest.held -= self._size
        self._size = 0


class Rest:
    """Answers the calls of ROUTES."""

    def __init__(self, upstreams: Upstreams, settings: FrontSettings, telemetry: Telemetry, sampling: Sampling) -> None:
        self._upstreams, self._telemetry, self._sampling = upstreams, telemetry, sampling
        self._host, self.limits = settings.host, settings.limits
        self.held = 0
        self._reading: set[asyncio.Timeout] = set()  # bodies that have not ended

    def hurry(self) -> None:
        """The server stops: who has not sent its body yet is not waited for."""
        for bound in self._reading:
            if not bound.expired():
                bound.reschedule(asyncio.get_running_loop().time())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        record = Record("http", "other", traceparent=request.headers.get("traceparent"))
        if IDENTIFIER.fullmatch(given := request.headers.get(REQUEST_ID, "")):
            record.request_id = given
        held = Held(self)
        try:
            response = await self._response(request, record, held)
            response.headers.update(NAMED | {REQUEST_ID: record.request_id})
            await self._send(request, response, record)
            return response
        except (asyncio.CancelledError, ConnectionError):
            record.outcome, record.message = Outcome.CANCELLED, "the caller has gone"
            raise
        finally:
            held.release()
            record.total = time.monotonic() - started
            if record.method not in ("ServerLive", "ServerReady", "ModelReady"):  # asked all the time
                self._telemetry.finish(record)

    async def _response(self, request: web.BaseRequest, record: Record, held: Held) -> web.Response:
        """Of whatever happens; record.outcome and record.message say what did."""
        try:
            if (reason := why_not(request.headers, self._host)) is not None:
                raise Refused(Outcome.FORBIDDEN, reason)
            call = _call(request)
            record.method, record.model = call.method, call.model
            match call.method:
                case "ServerLive":
                    return web.Response(status=200)
                case "ServerReady" | "ModelReady":
                    return web.Response(status=200 if self._upstreams.ready(call.version) else 503)
                case "ModelInfer":
                    return await self._infer(request, call, record, held)
            upstream = self._find(call, record)
            async with asyncio.timeout(ASK_SECONDS):
                answered = await self._forward(upstream, request.rel_url.raw_path, None, {}, record, held)
            match call.method:
                case "ServerMetadata":
                    return _offered(answered)
                case "ModelMetadata":
                    return _changed(answered, versions=list(map(str, self._upstreams.running)))
            return answered
        except HttpRefused as error:
            return _refusal(record, error, error.status, error.headers)
        except Refused as error:
            after = {} if error.retry_after is None else {"Retry-After": f"{max(1, round(error.retry_after))}"}
            status = 404 if error.code == grpc.StatusCode.NOT_FOUND else STATUS[error.outcome]
            return _refusal(record, error, status, after)
        except TimeoutError:
            return _refusal(record, Refused(Outcome.DEADLINE, "there was no answer in time"), 504)
        except Exception:
            logger.exception("request %s failed in the front", record.request_id)
            return _refusal(record, Refused(Outcome.FAILED, "the server failed; its log has the reason"), 500)

    def _find(self, call: Call, record: Record) -> Upstream:
        upstream = self._upstreams.find(call.version)
        record.version = str(upstream.version)
        return upstream

    async def _infer(self, request: web.BaseRequest, call: Call, record: Record, held: Held) -> web.Response:
        self._find(call, record)  # before a body is read for nothing
        body = await self._body(request, held)
        record.bytes_in = len(body)
        upstream = self._find(call, record)  # another may serve by now; from here to its turn nothing is waited for
        if len(body) > upstream.limits.max_message:
            raise _too_large(upstream.limits.max_message)
        checked = check(record.model, body, request.headers.get(HEADER_LENGTH), upstream.limits)
        asked = checked.asked
        record.photos, record.pixels = asked.photos, asked.pixels
        record.request_id = asked.request_id or record.request_id
        headers = {"Content-Type": JSON}
        if checked.header_length is not None:
            headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(checked.header_length)}
        async with (
            asyncio.timeout(checked.seconds or upstream.limits.max_seconds),
            upstream.admission.turn(record, asked.large, checked.seconds),
        ):
            answered = await self._forward(upstream, request.rel_url.raw_path, body, headers, record, held)
        self._sampling.answered(upstream.version, record, asked, body, checked.header_length)
        return answered

    async def _body(self, request: web.BaseRequest, held: Held) -> bytes:
        """The whole body. Refused before it is read where that can be known, else as soon as it is."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise HttpRefused(Outcome.INVALID, "Content-Encoding is not taken: send the body as it is", 415)
        most = self.limits.max_message
        too_large = _too_large(most)
        declared = int(request.headers.get("Content-Length", 0))  # digits, says the parser
        if declared > most:
            raise too_large
        held.add(declared)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS) as bound:
                self._reading.add(bound)
                async for part in request.content.iter_any():
                    size += len(part)
                    if size > most:
                        raise too_large
                    if size > declared:
                        held.add(size - declared)
                        declared = size
                    parts.append(part)
        except TimeoutError:
            message = f"the body did not come within {BODY_SECONDS:g} s, or the server stops"
            raise HttpRefused(Outcome.DEADLINE, message, 408, {"Connection": "close"}) from None
        except web.RequestPayloadError:
            raise Refused(Outcome.INVALID, "the body is not what its headers declare") from None
        finally:
            self._reading.discard(bound)
        return b"".join(parts)

    async def _forward(
        self,
        upstream: Upstream,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        record: Record,
        held: Held,
    ) -> web.Response:
        """Its Triton's answer. A body goes with its length, never chunked."""
        verb, data = ("GET", None) if body is None else ("POST", io.BytesIO(body))
        try:
            with upstream.http() as triton:
                async with triton.request(verb, f"http://triton{path}", data=data, headers=headers) as reply:
                    if (reply.content_length or 0) > MOST_ANSWER:
                        most = f"more than {MOST_ANSWER} bytes"
                        raise Refused(Outcome.TOO_LARGE, f"the answer has {most}: ask for fewer outputs")
                    held.add(reply.content_length or 0)
                    content = await reply.read()
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            upstream.backend.suspect(f"its HTTP answers no more: {type(error).__name__}")
            lost = "the server behind the front was lost while it worked on the request"
            raise Refused(Outcome.UNAVAILABLE, lost, 1.0) from error
        if reply.status >= 400:
            refused = _failure(reply.status, content)
            if refused.outcome == Outcome.UNAVAILABLE:
                upstream.backend.suspect(f"{record.method} failed: {content[:200]!r}")
            raise refused
        record.bytes_out = len(content)
        kept = {name: reply.headers[name] for name in ("Content-Type", HEADER_LENGTH) if name in reply.headers}
        return web.Response(status=reply.status, body=content, headers=kept)

    async def _send(self, request: web.BaseRequest, response: web.Response, record: Record) -> None:
        """Here, and not after the handler, so that a caller who does not read cannot keep memory for ever."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            record.outcome, record.message = Outcome.CANCELLED, f"the answer was not read within {SEND_SECONDS:g} s"
            if request.transport is not None:
                assert isinstance(request.transport, asyncio.WriteTransport)
                request.transport.abort()


def _call(request: web.BaseRequest) -> Call:
    """Which one it is. HttpRefused for any other."""
    path = request.rel_url.raw_path
    for route in ROUTES:
        if match := route.path.fullmatch(path):
            verbs = ("GET", "HEAD") if route.verb == "GET" else (route.verb,)
            if request.method not in verbs:
                raise HttpRefused(Outcome.INVALID, f"give {route.verb}", 405, {"Allow": ", ".join(verbs)})
            named = match.groupdict()
            return Call(route.method, named.get("model") or "", named.get("version") or "")
    if ELSEWHERE.fullmatch(path):
        raise HttpRefused(Outcome.FORBIDDEN, "nobody may make this call from outside", 403)
    raise HttpRefused(Outcome.INVALID, f"there is no such call; the models are {MODEL} and {PHOTO_MODEL}", 404)


def _offered(response: web.Response) -> web.Response:
    """The server's metadata without the extensions that are closed here."""
    assert isinstance(response.body, bytes)
    offered = json.loads(response.body).get("extensions", ())
    return _changed(response, extensions=[name for name in offered if name in EXTENSIONS])


def _changed(response: web.Response, **changes: object) -> web.Response:
    """The same JSON, but for this."""
    assert isinstance(response.body, bytes)
    return answer(response.status, json.loads(response.body) | changes)


def _too_large(most: int) -> Refused:
    return Refused(Outcome.TOO_LARGE, f"the body has more than {most} bytes, the most of one request")


def _failure(status: int, content: bytes) -> Refused:
    """An error of Triton, as its caller may read it."""
    try:
        message = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        message = ""
    outcome = Outcome.UNAVAILABLE if status == 503 else Outcome.INVALID if status < 500 else blame(message)
    if outcome == Outcome.UNAVAILABLE:
        return Refused(outcome, RESTARTING, 1.0)
    if outcome == Outcome.INVALID:
        told = clean(message) or "the server refuses the request"
        return HttpRefused(outcome, told, status if status < 500 else 400)
    return Refused(outcome, clean(message) or "the model failed; its log has the reason")


def _refusal(record: Record, error: Refused, status: int, headers: dict[str, str] | None = None) -> web.Response:
    record.outcome, record.message = error.outcome, error.message
    return answer(status, {"error": error.message}, headers)
