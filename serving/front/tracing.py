"""OpenTelemetry traces: a span of the server for each inference, with the queue and Triton inside it."""

from __future__ import annotations

import re
import threading

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import upsnet
from serving.record import Outcome, Record
from upsnet.errors import InputError

CLOSE_SECONDS = 1.0
EXPORT_SECONDS = 3.0  # for one batch of spans; what an endpoint does not take is dropped
SERVICE = "inference.GRPCInferenceService"  # KServe v2


class Tracing:
    """Spans go to `processor`; without one, none are made, and the caller's trace is only named in the log."""

    def __init__(self, processor: SpanProcessor | None) -> None:
        self._processor = processor
        resource = Resource.create({SERVICE_NAME: "upsnet", SERVICE_VERSION: upsnet.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("upsnet.serving", upsnet.__version__)
        if processor is not None:
            self._provider.add_span_processor(processor)

    def finish(self, record: Record) -> str | None:
        """Makes the spans of a request that has ended. Its trace's id, where it belongs to one."""
        parent = TraceContextTextMapPropagator().extract({"traceparent": record.traceparent or ""})
        if self._processor is None:
            return _trace_id(get_current_span(parent))
        end = record.started + record.total
        sent = end - record.served  # to Triton
        span = self._tracer.start_span(
            f"{SERVICE}/{record.method}" if record.protocol == "grpc" else f"{record.protocol} {record.method}",
            parent,
            SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=_nanoseconds(record.started),
        )
        if record.outcome != Outcome.OK:
            span.set_status(Status(StatusCode.ERROR, record.message))
        for name, begun, ended in (("queue", sent - record.queued, sent), ("triton", sent, end)):
            if ended > begun:
                child = self._tracer.start_span(name, set_span_in_context(span), start_time=_nanoseconds(begun))
                child.end(_nanoseconds(ended))
        span.end(_nanoseconds(end))
        return _trace_id(span)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class Exporter(BatchSpanProcessor):
    """Sends spans by OTLP over gRPC, in a thread of its own. What the endpoint does not take in time is dropped."""

    def __init__(self, endpoint: str) -> None:
        if not re.fullmatch(r"https?://[^/\s]+/?", endpoint):
            raise InputError(f"--otlp-endpoint {endpoint}: give http://HOST:4317, or https:// for TLS")
        insecure = endpoint.startswith("http://")
        self._otlp = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_SECONDS)
        super().__init__(self._otlp)

    def shutdown(self) -> None:
        """At most CLOSE_SECONDS: the exporter, once it is shut, gives up the batch that it is trying to send."""
        timer = threading.Timer(CLOSE_SECONDS, self._otlp.shutdown)
        timer.start()
        super().shutdown()
        timer.cancel()


def _attributes(record: Record) -> dict[str, str | int]:
    """OpenTelemetry's names where it has some; only bounded, printable texts of the caller."""
    attributes: dict[str, str | int] = {
        "rpc.system": record.protocol,
        "rpc.service": SERVICE,
        "rpc.method": record.method,
        "upsnet.request_id": record.request_id,
        "upsnet.model": record.model,
        "upsnet.model_version": record.version,
        "upsnet.outcome": record.outcome,
        "upsnet.photos": record.photos,
        "upsnet.pixels": record.pixels,
        "rpc.request.size": record.bytes_in,
        "rpc.response.size": record.bytes_out,
    }
    return attributes if record.outcome == Outcome.OK else attributes | {"error.type": record.outcome}


def _trace_id(span: Span) -> str | None:
    context = span.get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # a float of today has no more digits
