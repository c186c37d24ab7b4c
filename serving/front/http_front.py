"""The HTTP that anybody on this machine reaches: the operators' port, and REST where it is asked for."""

from __future__ import annotations

from functools import partial

from prometheus_client import Gauge

from serving.front.http_listener import Listener
from serving.front.operators import Operators
from serving.front.rest import Rest
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.upstream import Upstreams
from serving.record import Telemetry


class HttpFront:
    """/health and /metrics on settings.metrics_port; KServe v2 REST on settings.http_port, unless that is None."""

    def __init__(
        self,
        upstreams: Upstreams,
        shared: SharedMemory,
        settings: FrontSettings,
        telemetry: Telemetry,
        sampling: Sampling,
    ) -> None:
        self.operators = Operators(upstreams, shared, settings, telemetry.registry, sampling)
        self._rest = Rest(upstreams, settings, telemetry, sampling)
        self._listeners = {"metrics": Listener(self.operators.handle, settings.host, settings.metrics_port, "metrics")}
        if settings.http_port is not None:
            tls = settings.tls.renewed_context() if settings.tls else None
            self._listeners["http"] = Listener(self._rest.handle, settings.host, settings.http_port, "http", tls)
        connections = Gauge(
            "upsnet_http_connections", "Open HTTP connections.", labelnames=["port"], registry=telemetry.registry
        )
        for name, listener in self._listeners.items():
            connections.labels(name).set_function(partial(getattr, listener, "connections"))

    async def start(self) -> dict[str, int]:
        """The ports that it listens on, by name. InputError, and nothing is left, where one cannot be had."""
        try:
            return {name: await listener.start() for name, listener in self._listeners.items()}
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, seconds: float) -> None:
        """Requests under way have these seconds; health and metrics are told until the last of them has ended."""
        self._rest.hurry()
        for name in ("http", "metrics"):
            if name in self._listeners:
                await self._listeners[name].stop(seconds)
