"""`upsnet serve` in a process of its own, as people start it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT
from tests.serving.soak.footprint import Footprint

READY = re.compile(r"Triton serves \S+ on (\S+): (.+)\. Ctrl-C stops it\.")
START_SECONDS = 120.0


class Running(NamedTuple):
    """A service that has said that it is ready."""

    process: subprocess.Popen[str]
    log: Path  # what it says
    host: str
    ports: dict[str, int]  # grpc, http (where it is on), metrics

    def address(self, port: str) -> str:
        return f"{self.host}:{self.ports[port]}"

    def health(self) -> dict[str, Any]:
        """What /health says, whatever its status."""
        connection = http.client.HTTPConnection(self.host, self.ports["metrics"], timeout=10)
        with closing(connection):
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())

    def processes(self, name: str) -> list[int]:
        """Those of the service's in whose command line there is this."""
        found = Footprint(self.process.pid, "").processes()
        return [pid for pid in found if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(log: Path, *options: str | Path) -> Iterator[Running]:
    """`upsnet serve` with these options, on free ports; afterwards it is gone, whatever became of it."""
    command: Sequence[str] = [sys.executable, "-m", "upsnet", "serve", *map(str, options)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
    try:
        yield _wait_until_ready(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> Running:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := READY.search(log.read_text()):
            ports = {name: int(port) for name, port in (each.split() for each in found[2].split(", "))}
            return Running(process, log, found[1], ports)
        time.sleep(0.05)
    raise AssertionError(f"the service did not get ready: {log.read_text()}")
