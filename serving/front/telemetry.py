"""What is told of the requests: Prometheus metrics, an access log, traces."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from serving.front.logs import AccessLog
from serving.front.tracing import Exporter, Tracing
from serving.record import Outcome, Record
from upsnet.contract import MODEL, PHOTO_MODEL

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
PHOTOS = (1, 2, 4, 8, 16, 32)
MODELS = (MODEL, PHOTO_MODEL)
PROTOCOLS = ("grpc", "http")
INFERENCES = ("ModelInfer", "ModelStreamInfer")
METHODS = (
    *(*INFERENCES, "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady"),
    *("ServerMetadata", "ServerLive", "ServerReady", "Check", "Watch"),
)
OTHER = "other"  # the label of what a caller has made up: labels are kept for ever


class ServiceTelemetry:
    """The Telemetry of a service (serving/record.py)."""

    def __init__(self, access_log: Path | None, tracing: Tracing) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], label: str = "model") -> Histogram:
            return Histogram(name, what, [label], buckets=buckets, registry=registry)

        self._requests = counter(
            "upsnet_requests", "Requests that have ended.", "protocol", "method", "model", "outcome"
        )
        self._photos = counter("upsnet_photos", "Photos that were answered.", "model")
        self._pixels = counter("upsnet_pixels", "Pixels of the photos that were answered, where known.", "model")
        self._received = counter("upsnet_received_bytes", "Bytes of the requests.", "protocol")
        self._sent = counter("upsnet_sent_bytes", "Bytes of the answers.", "protocol")
        self._queue = histogram("upsnet_queue_seconds", "Time that answered requests waited for their turn.", SECONDS)
        self._service = histogram("upsnet_service_seconds", "Time that answered requests were with Triton.", SECONDS)
        self._total = histogram("upsnet_request_seconds", "Time from a request to its answer.", SECONDS)
        self._per_request = histogram("upsnet_request_photos", "Photos of an answered request.", PHOTOS)
        self._of_version = counter(
            "upsnet_version_requests", "Inference requests that have ended.", "version", "outcome"
        )
        self._version_total = histogram(
            "upsnet_version_request_seconds", "Time from a request to its answer.", SECONDS, "version"
        )
        lost = counter("upsnet_log_lines_lost", "Lines of the access log that could not be written.")
        self._log, self._tracing = AccessLog(access_log, lost.inc), tracing
        for protocol in PROTOCOLS:
            for model in MODELS:
                for outcome in Outcome:  # from the start, so that a rate sees the first of each
                    self._requests.labels(protocol, "ModelInfer", model, outcome)

    def finish(self, record: Record) -> None:
        model = record.model if record.model in MODELS else OTHER
        method = record.method if record.method in METHODS else OTHER
        self._requests.labels(record.protocol, method, model, record.outcome).inc()
        self._received.labels(record.protocol).inc(record.bytes_in)
        self._sent.labels(record.protocol).inc(record.bytes_out)
        if record.version and method in INFERENCES:
            self._of_version.labels(record.version, record.outcome).inc()
        if record.outcome == Outcome.OK and method in INFERENCES:
            self._version_total.labels(record.version).observe(record.total)
            self._photos.labels(model).inc(record.photos)
            self._pixels.labels(model).inc(record.pixels)
            self._queue.labels(model).observe(record.queued)
            self._service.labels(model).observe(record.served)
            self._total.labels(model).observe(record.total)
            self._per_request.labels(model).observe(record.photos)
        self._log.write(record, self._tracing.finish(record))

    def close(self) -> None:
        self._tracing.close()
        self._log.close()


def make_telemetry(access_log: Path | None, otlp_endpoint: str | None) -> ServiceTelemetry:
    """access_log: see AccessLog. otlp_endpoint: where traces go; None: nowhere. InputError where one is no use."""
    disable_created_metrics()  # a second series beside each counter, which nobody reads
    tracing = Tracing(Exporter(otlp_endpoint) if otlp_endpoint else None)
    return ServiceTelemetry(access_log, tracing)
