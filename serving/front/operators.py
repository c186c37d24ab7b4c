"""The operators' port: the truth about the service's health and its versions, and its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

import upsnet
from serving.backend import State
from serving.bulletins import EMBEDDED
from serving.front.http_listener import NAMED, answer, why_not
from serving.front.sampling import Sampling
from serving.front.scrape import merge, scrape
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.upstream import Upstreams

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CALLS = "/health, /health/live, /health/ready, /health/versions and /metrics"


class HealthCollector(Collector):
    """What the supervisors and the queues know, asked at each scrape. Without the label `version`: of the version in
    service, or of all."""

    def __init__(self, upstreams: Upstreams, shared: SharedMemory) -> None:
        self._upstreams, self._shared = upstreams, shared

    def collect(self) -> Iterator[Metric]:
        health = self._upstreams.fleet.serving.backend.health
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
        queues = [each.admission for each in self._upstreams.all]
        for name, what, count in (
            ("requests_waiting", "Requests that wait for their turn.", sum(each.waiting for each in queues)),
            ("requests_in_flight", "Requests that are with Triton.", sum(each.in_flight for each in queues)),
            ("shared_memory_regions", "Regions of shared memory that clients have registered.", len(self._shared)),
            ("versions_failed", "Versions that should run and do not.", len(self._upstreams.fleet.failed)),
        ):
            gauge = GaugeMetricFamily(f"upsnet_{name}", what)
            gauge.add_metric([], count)
            yield gauge
        yield from self._versions()

    def _versions(self) -> Iterator[Metric]:
        names = ["version"]
        info = InfoMetricFamily("upsnet_version", "A version that runs.", labels=["version", "role", "sha256"])
        ready = GaugeMetricFamily("upsnet_version_ready", "1 where it answers.", labels=names)
        restarts = CounterMetricFamily("upsnet_version_restarts", "Restarts of its Triton.", labels=names)
        memory = GaugeMetricFamily("upsnet_version_resident_memory_bytes", "Of its processes.", labels=names)
        for member in self._upstreams.fleet.members.values():
            labels, health = [str(member.version)], member.backend.health
            info.add_metric([*labels, member.role, health.model_sha256], {})
            ready.add_metric(labels, health.state == State.READY)
            restarts.add_metric(labels, health.restarts)
            memory.add_metric(labels, sum(health.memory.values()))
        yield from (info, ready, restarts, memory)


class Operators:
    """Answers GET of CALLS."""

    def __init__(
        self,
        upstreams: Upstreams,
        shared: SharedMemory,
        settings: FrontSettings,
        registry: CollectorRegistry,
        sampling: Sampling,
    ) -> None:
        self._upstreams, self._fleet, self._settings = upstreams, upstreams.fleet, settings
        self._registry, self._sampling = registry, sampling
        self.ports: dict[str, int] = {}  # of the service
        self._started = time.time()
        self._failures = Counter(
            "upsnet_triton_scrape_failures", "Scrapes that Triton's own metrics are missing from.", registry=registry
        )
        registry.register(HealthCollector(upstreams, shared))
        ProcessCollector(registry=registry)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if (reason := why_not(request.headers, self._settings.host)) is not None:
            return answer(403, {"error": reason})
        if request.method not in ("GET", "HEAD"):
            return answer(405, {"error": "give GET"}, {"Allow": "GET, HEAD"})
        ready = self._upstreams.ready()
        match request.path:
            case "/health":
                return answer(200 if ready else 503, self._health())
            case "/health/live":
                return answer(200, {"live": True})
            case "/health/ready":
                return answer(200 if ready else 503, {"ready": ready})
            case "/health/versions":
                return answer(200, self._versions())
            case "/metrics":
                return await self._metrics()
        return answer(404, {"error": f"there is {CALLS}"})

    def _health(self) -> dict[str, object]:
        health = self._fleet.serving.backend.health
        return {
            "state": health.state,
            "reasons": health.reasons,
            "since": _time(health.since),
            "uptime_seconds": round(time.time() - self._started, 3),
            "restarts": health.restarts,
            "model_sha256": health.model_sha256,
            "memory_bytes": health.memory,
            "version": upsnet.__version__,
            "triton": EMBEDDED,
        }

    def _versions(self) -> dict[str, object]:
        versions = {}
        for number, member in self._fleet.members.items():
            health = member.backend.health
            versions[str(number)] = {
                "role": member.role,
                "state": health.state,
                "reasons": health.reasons,
                "since": _time(health.since),
                "restarts": health.restarts,
                "model_sha256": health.model_sha256,
                "memory_bytes": health.memory,
            }
        return {
            "rollouts": self._fleet.rollouts,
            "serving": self._fleet.serving.version,
            "ports": self.ports,
            "tls": self._settings.tls is not None,
            "versions": versions,
            "failed": {str(number): why for number, why in self._fleet.failed.items()},
            "canary": self._sampling.figures(),
        }

    async def _metrics(self) -> web.Response:
        """Triton's, of each version that answers, and ours."""
        serving = self._fleet.serving
        others = [each for each in self._fleet.members.values() if each.backend is not serving.backend]
        texts = await asyncio.gather(*map(scrape, (serving, *others)))
        if texts[0] is None:
            self._failures.inc()
        of_others = ((each.version, text) for each, text in zip(others, texts[1:], strict=True) if text)
        triton = merge(texts[0] or "", of_others)
        headers = {"Content-Type": CONTENT_TYPE, **NAMED}
        return web.Response(body=triton.encode() + generate_latest(self._registry), headers=headers)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
