"""The service behind `upsnet serve`: a supervised Triton server, and the front before it, until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from serving.backend import Health, Member, Role, State
from serving.bulletins import embedded_notice
from serving.environment import Environment
from serving.front.front import Front, FrontSettings
from serving.front.telemetry import make_telemetry
from serving.front.tls import Tls
from serving.layout import latest_version
from serving.limits import Limits
from serving.listen import check_ports
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

    @property
    def ports(self) -> dict[str, int]:
        wanted = {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}
        return {name: port for name, port in wanted.items() if port is not None}


class Alone:
    """A Fleet of one version for ever."""

    rollouts = ""

    def __init__(self, member: Member) -> None:
        self.serving, self.members = member, {member.version: member}
        self.failed: dict[int, str] = {}


async def serve(settings: Settings) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP. InputError where the service does not start."""
    environment = Environment.find(None)
    check_ports(settings.host, settings.ports)
    stop, hurry = heed_signals()
    telemetry = make_telemetry(settings.access_log, settings.otlp_endpoint)
    with closing(telemetry), Scratch() as scratch:
        process = TritonProcess(environment, settings.repository, scratch, settings.log)
        ports: dict[str, int] = {}

        said: list[State] = []

        def changed(health: Health) -> None:
            if health.state is not State.STOPPED and (said or health.reasons):
                say(f"{health.state}: {'; '.join(health.reasons) or 'the models answer again'}")
                said.append(health.state)
            with suppress(WriteError):  # a full disk does not end the service
                keep(health)

        def keep(health: Health) -> None:
            if settings.state is not None:
                told = health._asdict() | {"ports": ports, "pid": os.getpid(), "triton_pid": process.pid}
                del told["memory"]  # which changes while the state stays
                write_json(settings.state, told)

        supervisor = Supervisor(
            process,
            start_timeout=settings.start_timeout,
            hang_timeout=settings.hang_timeout,
            memory_limit=settings.memory_limit,
            changed=changed,
        )
        limits = Limits.of(process.manifest)
        front = Front(
            Alone(Member(int(latest_version(settings.repository).name), Role.SERVING, supervisor, limits)),
            FrontSettings(
                settings.host,
                settings.grpc_port,
                settings.http_port,
                settings.metrics_port,
                limits,
                scratch.folder,
                settings.tls,
            ),
            telemetry,
        )
        try:
            try:
                keep(supervisor.health)
            except WriteError as error:
                raise InputError(f"{error}; give --state another file") from error
            ports |= await front.start()
            await first(supervisor.start(), stop.wait())
            if not stop.is_set():
                say(embedded_notice())
                say(f"The models {' and '.join(process.models)} run on {process.engine}.")
                listed = ", ".join(f"{name} {ports[name]}" for name in ("grpc", "http", "metrics") if name in ports)
                print(f"Triton serves {MODEL} on {settings.host}: {listed}. Ctrl-C stops it.", flush=True)
                await first(supervisor.wait(), stop.wait())
        finally:
            if stop.is_set():
                supervisor.drain(f"requests under way have {settings.drain:g} s; a second signal ends them at once")
            await first(front.stop(settings.drain if stop.is_set() else 0), hurry.wait())
            if hurry.is_set():
                await front.stop(0)
            await supervisor.stop()


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
