"""The HTTP that anybody on this machine reaches: the operators' port, and REST where it is asked for."""

from __future__ import annotations

from functools import partial

from prometheus_client import Gauge

from serving.backend import Backend
from serving.front.admission import Admission
from serving.front.http_listener import Listener
from serving.front.operators import Operators
from serving.front.rest import Rest
from serving.front.settings import FrontSettings
from serving.record import Telemetry


class HttpFront:
    """/health and /metrics on settings.metrics_port; KServe v2 REST on settings.http_port, unless that is None."""

    def __init__(self, backend: Backend, settings: FrontSettings, telemetry: Telemetry, admission: Admission) -> None:
        self._operators = Operators(backend, settings.host, telemetry.registry)
        self._rest = Rest(backend, settings, telemetry, admission)
        self._listeners = {"metrics": Listener(self._operators.handle, settings.host, settings.metrics_port, "metrics")}
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
            await self._operators.start()
            await self._rest.start()
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
        await self._rest.stop()
        await self._operators.stop()
