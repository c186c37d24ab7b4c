"""The operators' port: the truth about the service's health, and its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

import upsnet
from serving.backend import Backend, State
from serving.bulletins import EMBEDDED
from serving.front.http_listener import answer, why_not

SCRAPE_SECONDS = 2.0  # in which Triton must have told its metrics
MOST_METRICS = 4 << 20  # bytes of them
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HealthCollector(Collector):
    """What the supervisor knows, asked at each scrape."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        health = self._backend.health
        state = GaugeMetricFamily("upsnet_state", "1 for the state that the service is in.", labels=["state"])
        for each in State:
            state.add_metric([each], each == health.state)
        yield state
        since = GaugeMetricFamily("upsnet_state_since_timestamp_seconds", "When this state began.")
        since.add_metric([], health.since)
        yield since
        restarts = CounterMetricFamily("upsnet_triton_restarts", "Restarts of Triton since the service started.")
        restarts.add_metric([], health.restarts)
        yield restarts
        memory = GaugeMetricFamily(
            "upsnet_resident_memory_bytes", "Resident memory of Triton and of each model's process.", labels=["process"]
        )
        for process, size in health.memory.items():
            memory.add_metric([process], size)
        yield memory
        info = {"sha256": health.model_sha256, "version": upsnet.__version__, "triton": EMBEDDED}
        yield InfoMetricFamily("upsnet_model", "The ONNX file that is served, and the versions around it.", info)


class Operators:
    """Answers GET /health, /health/live, /health/ready and /metrics."""

    def __init__(self, backend: Backend, host: str, registry: CollectorRegistry) -> None:
        self._backend, self._host, self._registry = backend, host, registry
        self._started = time.time()
        self._failures = Counter(
            "upsnet_triton_scrape_failures", "Scrapes that Triton's own metrics are missing from.", registry=registry
        )
        registry.register(HealthCollector(backend))
        ProcessCollector(registry=registry)
        self._triton: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.UnixConnector(path=str(self._backend.metrics_socket), force_close=True)
        self._triton = aiohttp.ClientSession(connector=connector)

    async def stop(self) -> None:
        if self._triton is not None:
            await self._triton.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if (reason := why_not(request.headers, self._host)) is not None:
            return answer(403, {"error": reason})
        if request.method not in ("GET", "HEAD"):
            return answer(405, {"error": "give GET"}, {"Allow": "GET, HEAD"})
        ready = self._backend.health.state == State.READY
        match request.path:
            case "/health":
                return answer(200 if ready else 503, self._health())
            case "/health/live":
                return answer(200, {"live": True})
            case "/health/ready":
                return answer(200 if ready else 503, {"ready": ready})
            case "/metrics":
                return await self._metrics()
        return answer(404, {"error": "there is /health, /health/live, /health/ready and /metrics"})

    def _health(self) -> dict[str, object]:
        health = self._backend.health
        return {
            "state": health.state,
            "reasons": health.reasons,
            "since": datetime.fromtimestamp(health.since, UTC).isoformat(timespec="milliseconds"),
            "uptime_seconds": round(time.time() - self._started, 3),
            "restarts": health.restarts,
            "model_sha256": health.model_sha256,
            "memory_bytes": health.memory,
            "version": upsnet.__version__,
            "triton": EMBEDDED,
        }

    async def _metrics(self) -> web.Response:
        """Triton's, where it answers, and ours."""
        triton = b""
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                triton = await self._ask_triton()
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._failures.inc()
        return web.Response(body=triton + generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _ask_triton(self) -> bytes:
        assert self._triton is not None
        async with self._triton.get("http://triton/metrics", raise_for_status=True) as response:
            body = await response.content.read(MOST_METRICS)
            while part := await response.content.read(MOST_METRICS - len(body)):
                body += part
        if not response.content.at_eof() or (body and not body.endswith(b"\n")):
            raise aiohttp.ClientPayloadError("Triton's metrics do not end")
        return body
