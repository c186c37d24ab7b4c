"""The service behind `upsnet serve`: a supervised Triton server, and the front before it, until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from serving.backend import Health, Role, State
from serving.bulletins import embedded_notice
from serving.environment import Environment
from serving.fleet import STANDBY, VersionFleet
from serving.front.canary import Canary
from serving.front.front import Front, FrontSettings
from serving.front.recorder import Recorder, RecorderSettings
from serving.front.sampling import Sampler, Sampling
from serving.front.telemetry import make_telemetry
from serving.front.tls import Tls
from serving.limits import Limits
from serving.listen import check_ports
from serving.rollouts.lease import lease_path
from serving.running import Opened, Running
from serving.scratch import Scratch
from serving.supervisor import Supervisor, first
from serving.triton_process import TritonProcess
from upsnet.contract import MODEL
from upsnet.errors import InputError
from upsnet.files import WriteError, write_json


class Settings(NamedTuple):
    """Of a service. host is a loopback address. Ports of 0 are picked free."""

    repository: Path
    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int | None = None
    metrics_port: int = 0
    log: Path | None = None
    start_timeout: float = 120.0
    hang_timeout: float = 60.0
    drain: float = 8.0
    memory_limit: int | None = None
    tls: Tls | None = None
    access_log: Path | None = None
    otlp_endpoint: str | None = None
    state: Path | None = None
    standby: float = STANDBY
    candidates: bool = True
    record: RecorderSettings | None = None  # of photos

    @property
    def ports(self) -> dict[str, int]:
        wanted = {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}
        return {name: port for name, port in wanted.items() if port is not None}

    def front(self, limits: Limits, folder: Path) -> FrontSettings:
        ports = self.grpc_port, self.http_port, self.metrics_port
        return FrontSettings(self.host, *ports, limits.of_port, folder, self.tls)


async def serve(settings: Settings) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP. InputError where the service does not start."""
    environment = Environment.find(None)
    check_ports(settings.host, settings.ports)
    stop, hurry = heed_signals()
    telemetry = make_telemetry(settings.access_log, settings.otlp_endpoint)
    with closing(telemetry), Scratch() as scratch:
        fleet = VersionFleet(
            settings.repository,
            Opener(environment, settings.repository, settings.log),
            partial(Supervisor, start_timeout=settings.start_timeout, hang_timeout=settings.hang_timeout),
            standby=settings.standby,
            candidates=settings.candidates,
            memory_limit=settings.memory_limit,
            say=say,
        )
        news = News(fleet, settings.state)
        await fleet.open()
        try:
            try:
                news.keep()
            except WriteError as error:
                raise InputError(f"{error}; give --state another file") from error
            fleet.changed = news.changed
            samplers: list[Sampler] = [Canary(fleet, lease_path(settings.repository), telemetry.registry)]
            if settings.record is not None:
                samplers.append(Recorder(settings.record, telemetry.registry))
            front = Front(fleet, settings.front(fleet.serving.limits, scratch.folder), telemetry, Sampling(*samplers))
            fleet.leave = front.leave
            try:
                news.ports = await front.start()
                await first(fleet.start(), stop.wait())
                if not stop.is_set():
                    server = fleet.server
                    say(embedded_notice())
                    say(f"The models {' and '.join(server.models)} run on {server.engine}.")
                    listed = [
                        f"{name} {news.ports[name]}" for name in ("grpc", "http", "metrics") if name in news.ports
                    ]
                    print(
                        f"Triton serves {MODEL} on {settings.host}: {', '.join(listed)}. Ctrl-C stops it.", flush=True
                    )
                    await first(fleet.wait(), stop.wait())
            finally:
                if stop.is_set():
                    fleet.drain(f"requests under way have {settings.drain:g} s; a second signal ends them at once")
                await first(front.stop(settings.drain if stop.is_set() else 0), hurry.wait())
                if hurry.is_set():
                    await front.stop(0)
        finally:
            await fleet.stop()


class Opener:
    """Copies a version's files. The version in service at the start writes to the file of --log, version N of the
    others to that name with .N after it."""

    def __init__(self, environment: Environment, repository: Path, log: Path | None) -> None:
        self._environment, self._repository, self._log = environment, repository, log
        self._first = True

    def __call__(self, version: int | None) -> Opened:
        log, self._first = self._log if self._first or self._log is None else Path(f"{self._log}.{version}"), False
        scratch = Scratch()
        try:
            server = TritonProcess(self._environment, self._repository, scratch, log, version)
        except BaseException:
            scratch.close()
            raise
        return Opened(server, Limits.of(server.manifest), scratch.close)


class News:
    """What people are told of the versions, on stderr and in the state file."""

    def __init__(self, fleet: VersionFleet, state: Path | None) -> None:
        self.ports: dict[str, int] = {}
        self._fleet, self._state = fleet, state
        self._told: WeakKeyDictionary[Running, tuple[State, tuple[str, ...]]] = WeakKeyDictionary()

    def changed(self) -> None:
        for running in self._fleet.running:
            if running.health is not None:
                self._say(running, running.health)
        with suppress(WriteError):  # a full disk does not end the service
            self.keep()

    def _say(self, running: Running, health: Health) -> None:
        """The start of the version that the service begins with is no news, nor is the end of one."""
        before, serves = self._told.get(running), running.role is Role.SERVING
        now = self._told[running] = (health.state, health.reasons)
        begins = serves and (health.state is State.STARTING or before is None or before[0] is State.STARTING)
        ends = health.state is State.STOPPED or (health.state is State.DRAINING and not serves)
        if now != before and not ends and not (begins and health.state is not State.DRAINING):
            who = "" if serves else f"version {running.number} ({running.role}): "
            again = " again" if before is not None and before[0] is State.DEGRADED else ""
            say(f"{who}{health.state}: {'; '.join(health.reasons) or f'the models answer{again}'}")

    def keep(self) -> None:
        """WriteError."""
        if self._state is None:
            return
        fleet = self._fleet
        health = fleet.serving.backend.health
        told = health._asdict() | {"ports": self.ports, "pid": os.getpid(), "rollouts": fleet.rollouts}
        del told["memory"]  # which changes while the state stays
        told["serving"], told["triton_pid"] = fleet.serving.version, fleet.server.pid
        told["versions"] = {
            str(running.number): {
                "role": running.role,
                "state": running.health.state,
                "reasons": running.health.reasons,
                "triton_pid": running.server.pid,
            }
            for running in fleet.running
            if running.health is not None and running.server is not None
        }
        told["failed"] = {str(number): reason for number, reason in fleet.failed.items()}
        write_json(self._state, told)


def heed_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first signal to stop, and of the second. What is ignored (nohup) stays so."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    return stop, hurry


def say(line: str) -> None:
    """To whoever reads stderr; the terminal may have been closed."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
