"""gRPC for clients: the calls of KServe v2 that anybody may make, passed on as the bytes that they are to the Triton of
the version that they name."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from serving.front import requests
from serving.front.reading import Reading
from serving.front.refusal import Refused
from serving.front.region_calls import RegionCalls
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.upstream import TRITON, UNLIMITED, Upstream, Upstreams
from serving.record import Outcome, Record, Telemetry
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.runtimes.kserve import VERSION_HEADER
from upsnet.runtimes.shared_memory import PLACE, TOKEN

HEALTH = "/grpc.health.v1.Health/"
FORWARDED = ("ModelConfig", "ModelStatistics")  # of a version; they read, and change nothing
ASKED_ALL_THE_TIME = ("ServerLive", "ServerReady", "ModelReady", "Check")  # by monitors: not worth a line each
EXTENSIONS = ("classification", "sequence", "model_configuration", "binary_tensor_data", "parameters", "statistics")
REQUEST_ID, TRACE, RETRY_AFTER, PUSHBACK = "x-request-id", "traceparent", "retry-after", "grpc-retry-pushback-ms"
ATTEMPTS = "grpc-previous-rpc-attempts"  # of a call that gRPC retries
STREAMS = 64  # of one connection; its further calls wait with the client
OTHER_CALLS = 16 * STREAMS  # beside the inferences: health, metadata, and calls whose message does not come
QUIET = 0.1  # seconds without a new call after which the server stops
WATCH_SECONDS, MOST_WATCHERS = 0.5, 16  # between two looks at the health; who may look at a time
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # else a second server takes half of the calls, and nobody is told
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.keepalive_time_ms", 60_000),  # a peer that has gone without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_connection_age_ms", 3_600_000),  # a client comes again by itself; one that does not read is cut off
    ("grpc.max_connection_age_grace_ms", 300_000),
    ("grpc.server_handshake_timeout_ms", 10_000),  # a connection on which nobody speaks gRPC
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", STREAMS),
]
MOST_QUESTION = 4096  # bytes of a message that names a model or a region

logger = logging.getLogger(__name__)
Method = Callable[[bytes, Record, grpc.aio.ServicerContext], Awaitable[bytes]]


class GrpcFront(grpc.GenericRpcHandler):
    """A gRPC server of its own before Triton's. What is not named in `_methods` or in `service` is refused."""

    def __init__(
        self,
        upstreams: Upstreams,
        shared: SharedMemory,
        settings: FrontSettings,
        telemetry: Telemetry,
        sampling: Sampling,
    ) -> None:
        self._upstreams, self._shared, self._settings = upstreams, shared, settings
        self._telemetry, self._sampling = telemetry, sampling
        self._regions = RegionCalls(shared, upstreams)
        self._reading = Reading(settings.limits)
        self._methods: dict[str, Method] = {
            f"{TRITON}ServerLive": self._live,
            f"{TRITON}ServerReady": self._server_ready,
            f"{TRITON}ModelReady": self._model_ready,
            f"{TRITON}ModelInfer": self._infer,
            f"{HEALTH}Check": self._check,
            f"{TRITON}SystemSharedMemoryRegister": self._register,
            f"{TRITON}SystemSharedMemoryUnregister": self._unregister,
            f"{TRITON}ServerMetadata": self._server_metadata,
            f"{TRITON}ModelMetadata": self._model_metadata,
            **{f"{TRITON}{name}": self._ask_version for name in FORWARDED},
        }
        self._watchers = 0
        self._arrived = -math.inf  # when the newest call came
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """The port that it listens on."""
        host, port, limits = self._settings.host, self._settings.grpc_port, self._settings.limits
        server = grpc.aio.server(
            handlers=[self],
            options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", limits.max_message)],
            maximum_concurrent_rpcs=limits.max_waiting + limits.max_in_flight + OTHER_CALLS,
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        tls = self._settings.tls
        try:
            port = (
                server.add_secure_port(address, tls.credentials())
                if tls is not None
                else server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise InputError(f"cannot listen on {address} for grpc; give another grpc port") from error
        self._shared.open()
        await server.start()
        self._server = server
        return port

    async def stop(self, seconds: float) -> None:
        """New calls are refused at once; those under way have these seconds, and are then cancelled.

        gRPC cancels the calls that it has received and not yet handed over when it stops, which tells their callers
        that they did so themselves. So the server answers for as long as calls keep coming, within the seconds.
        """
        if self._server is not None:
            end = time.monotonic() + seconds
            while (wait := min(self._arrived + QUIET, end) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self._server.stop(max(0.0, end - time.monotonic()))
        self._shared.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self._arrived = time.monotonic()
        path: str = handler_call_details.method  # type: ignore[assignment]
        if path == f"{TRITON}ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if path == f"{HEALTH}Watch":
            return grpc.stream_stream_rpc_method_handler(self._watch)

        async def answer(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
            return await self._answer(path, messages, context)

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _answer(self, path: str, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        """One call of one message."""
        record = self._record(path, context)
        try:
            async with self._recorded(record, context):
                method = self._methods.get(path)
                if method is None:
                    raise Refused(Outcome.FORBIDDEN, f"{record.method} is closed on this server")
                record.message = "its message did not come to its end, or is larger than allowed"  # if this is the end
                body = await self._reading.read(messages) or b""
                record.bytes_in, record.message = len(body), ""
                answer = await method(body, record, context)
                record.bytes_out = len(answer)
                context.set_trailing_metadata(((REQUEST_ID, record.request_id),))
                return answer
        except Refused as refused:
            await context.abort(refused.code, refused.message, _trailing(record, refused))
            raise

    async def _stream(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """ModelStreamInfer: one message after the other, each admitted, counted and answered as a ModelInfer."""
        while (body := await self._next(messages, context)) is not None:
            record = self._record(f"{TRITON}ModelStreamInfer", context)
            record.bytes_in = len(body)
            try:
                async with self._recorded(record, context):
                    upstream, answer = await self._ask(body, record, context)
                    record.bytes_out = len(answer)
                reply = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse.FromString(answer))
            except Refused as refused:
                failed = pb.ModelInferResponse(id=record.request_id)
                yield pb.ModelStreamInferResponse(
                    error_message=refused.message, infer_response=failed
                ).SerializeToString()
                continue
            upstream.admission.held += len(answer)
            try:
                yield reply.SerializeToString()
            finally:
                upstream.admission.held -= len(answer)

    def _hold(self, upstream: Upstream, answer: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Until the caller has read it, an answer counts among the bytes that are here."""

        def release(_: object) -> None:
            upstream.admission.held -= len(answer)

        upstream.admission.held += len(answer)
        context.add_done_callback(release)
        return answer

    async def _next(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes | None:
        try:
            return await self._reading.read(messages)
        except Refused as refused:
            await context.abort(refused.code, refused.message)
            raise

    async def _infer(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        return self._hold(*await self._ask(body, record, context), context)

    async def _ask(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> tuple[Upstream, bytes]:
        """The answer to an inference request, and whose it is. From `find` to its turn nothing is waited for: a version
        that leaves has the request, or does not."""
        request, data = requests.read(body)
        record.model = request.model_name[: requests.MOST_NAME]
        record.request_id = requests.request_id(request) or record.request_id
        upstream = self._find(request.model_version, record)
        asked = requests.assess(request, data, upstream.limits)
        if len(body) > upstream.limits.max_message:
            raise Refused(Outcome.TOO_LARGE, f"a message of {len(body)} bytes: more than {upstream.limits.max_message}")
        record.photos, record.pixels = asked.photos, asked.pixels
        del request, data
        metadata = dict(context.invocation_metadata() or ())
        if asked.regions and ATTEMPTS in metadata:
            # The first attempt may still write there, while the caller has the second's answer and uses it again.
            raise Refused(Outcome.FORBIDDEN, "a request in shared memory is not retried")
        with self._shared.in_use(asked.regions, metadata.get(TOKEN)):
            async with upstream.admission.turn(record, asked.large, context.time_remaining()):
                await self._regions.tell(asked.regions, upstream, context.time_remaining)
                self._shared.check_lengths(asked.regions, upstream.backend)
                answer = await upstream.call("ModelInfer", body, context.time_remaining())
        self._sampling.answered(upstream.version, record, asked, body)
        return upstream, answer

    def _find(self, version: str, record: Record) -> Upstream:
        upstream = self._upstreams.find(version)
        record.version = str(upstream.version)
        return upstream

    async def _ask_version(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        """The answer to a call about the version that it names."""
        _check_question(body, record)
        named = requests.parse(getattr(pb, f"{record.method}Request"), body)
        answer = await self._forward(self._find(named.version, record), body, record, context)
        await context.send_initial_metadata(((VERSION_HEADER, record.version),))
        return answer

    async def _forward(
        self, upstream: Upstream, body: bytes, record: Record, context: grpc.aio.ServicerContext
    ) -> bytes:
        await upstream.admission.until_ready(context.time_remaining())
        return self._hold(upstream, await upstream.call(record.method, body, context.time_remaining()), context)

    async def _server_metadata(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        """Triton's, without the extensions that are closed here; and where the token for shared memory is."""
        _check_question(body, record)
        found = await self._forward(self._upstreams.serving, body, record, context)
        answer = pb.ServerMetadataResponse.FromString(found)
        offered = [name for name in answer.extensions if name in EXTENSIONS]
        answer.ClearField("extensions")
        answer.extensions.extend(offered)
        if re.fullmatch(r"[ -~]+", str(self._shared.place)):  # what a header can carry
            await context.send_initial_metadata(((PLACE, str(self._shared.place)),))
        return answer.SerializeToString()

    async def _model_metadata(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        """Triton's, which knows of one version, with all that run."""
        answer = pb.ModelMetadataResponse.FromString(await self._ask_version(body, record, context))
        answer.ClearField("versions")
        answer.versions.extend(map(str, self._upstreams.running))
        return answer.SerializeToString()

    async def _register(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        self._check_token(record, context)
        _check_question(body, record)
        request = requests.parse(pb.SystemSharedMemoryRegisterRequest, body)
        meant = str(dict(context.invocation_metadata() or ()).get(VERSION_HEADER, ""))
        return await self._regions.register(request, self._find(meant, record), context.time_remaining)

    async def _unregister(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        self._check_token(record, context)
        name = requests.parse(pb.SystemSharedMemoryUnregisterRequest, body).name
        self._shared.check_unused(name, dict(context.invocation_metadata() or ()).get(TOKEN))
        return await self._regions.unregister(name, context.time_remaining)

    def _check_token(self, record: Record, context: grpc.aio.ServicerContext) -> None:
        if not self._shared.may(dict(context.invocation_metadata() or ()).get(TOKEN)):
            raise Refused(Outcome.FORBIDDEN, f"{record.method} is closed on this server")

    async def _live(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def _server_ready(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        return pb.ServerReadyResponse(ready=self._upstreams.ready()).SerializeToString()

    async def _model_ready(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        request = requests.parse(pb.ModelReadyRequest, body)
        record.model = request.name
        ready = request.name in (MODEL, PHOTO_MODEL) and self._upstreams.ready(request.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def _check(self, body: bytes, record: Record, context: grpc.aio.ServicerContext) -> bytes:
        status = self._status(requests.parse(health_pb2.HealthCheckRequest, body).service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise Refused(Outcome.INVALID, "this server has no such service", code=grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status).SerializeToString()

    async def _watch(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Health.Watch: the status now, and each change of it."""
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy: {self._watchers} others watch the health")
        self._watchers += 1
        context.add_done_callback(self._watched)
        body = await self._next(messages, context) or b""
        try:
            service = requests.parse(health_pb2.HealthCheckRequest, body).service
        except Refused as refused:
            await context.abort(refused.code, refused.message)
        last = None
        while True:
            if (status := self._status(service)) != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            await asyncio.sleep(WATCH_SECONDS)

    def _watched(self, _: object) -> None:
        self._watchers -= 1

    def _status(self, service: str) -> Any:
        answer = health_pb2.HealthCheckResponse
        if service not in ("", "inference.GRPCInferenceService", MODEL, PHOTO_MODEL):
            return answer.SERVICE_UNKNOWN
        return answer.SERVING if self._upstreams.ready() else answer.NOT_SERVING

    def _record(self, path: str, context: grpc.aio.ServicerContext) -> Record:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        record = Record("grpc", path.rpartition("/")[2][:64], traceparent=metadata.get(TRACE))
        record.request_id = metadata.get(REQUEST_ID, record.request_id)[:128]
        return record

    @asynccontextmanager
    async def _recorded(self, record: Record, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        """Whatever ends inside it is told to the telemetry, once; what is not Refused becomes it."""
        begun = time.monotonic()
        try:
            yield
        except Refused as refused:
            record.outcome, record.message = refused.outcome, refused.message
            raise
        except asyncio.CancelledError:
            record.outcome = Outcome.DEADLINE if _is_late(context, begun) else Outcome.CANCELLED
            raise
        except Exception:
            logger.exception("request %s failed in the front", record.request_id)
            record.outcome, record.message = Outcome.FAILED, "the server failed; its log has the reason"
            raise Refused(record.outcome, record.message) from None
        finally:
            record.total = time.monotonic() - begun
            if record.method not in ASKED_ALL_THE_TIME or record.outcome != Outcome.OK:
                self._telemetry.finish(record)


def _check_question(body: bytes, record: Record) -> None:
    if len(body) > MOST_QUESTION:
        raise Refused(Outcome.INVALID, f"{record.method}: a message of more than {MOST_QUESTION} bytes")


def _is_late(context: grpc.aio.ServicerContext, begun: float) -> bool:
    """Whether the caller's time is over. gRPC tells the server of a little more of it than the caller has."""
    remaining = context.time_remaining()
    return remaining is not None and remaining <= 0.1 + 0.02 * (time.monotonic() - begun)


def _trailing(record: Record, refused: Refused) -> tuple[tuple[str, str], ...]:
    trailing = [(REQUEST_ID, record.request_id)]
    if refused.retry_after is not None:
        trailing += [
            (RETRY_AFTER, f"{refused.retry_after:g}"),
            (PUSHBACK, str(round(refused.retry_after * 1000))),
        ]
    return tuple(trailing)
