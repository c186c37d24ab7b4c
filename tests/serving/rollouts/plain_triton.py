"""The tritonserver of the wheel over a model repository as it is, without anything of this project around it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import upsnet
from serving.environment import Environment
from serving.probe import Probe, ServerError
from upsnet.contract import MODEL, PHOTO_MODEL


class PlainTriton:
    """One that has answered. `url` is that of its gRPC."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def plain_triton(environment: Path, repository: Path, *flags: str) -> Iterator[PlainTriton]:
    """Inside it the server runs and both models have answered; AssertionError, with its log, where that does not come.

    flags: more of tritonserver's, as --model-config-name=cpu.
    """
    found = Environment.find(environment)
    with tempfile.TemporaryDirectory(prefix="upsnet-plain-") as name:
        folder = Path(name)
        for place, files in (("backends/python", found.backend_files), ("python", [Path(upsnet.__file__).parent])):
            (folder / place).mkdir(parents=True)
            for file in files:
                (folder / place / file.name).symlink_to(file)
        ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        prefix = f"upsnet-test-{uuid.uuid4().hex[:8]}-"
        command = [str(found.triton / "bin/tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={folder / 'backends'}", "--disable-auto-complete-config"]
        command += [f"--backend-config=python,shm-region-prefix-name={prefix}", "--allow-gpu-metrics=false"]
        command += [f"--{name}-address=127.0.0.1" for name in ports]
        command += [f"--{name}-port={port}" for name, port in ports.items()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *flags],
                env=found.variables(folder / "python"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            url = f"127.0.0.1:{ports['grpc']}"
            asyncio.run(_wait(process, url, folder / "log"))
            yield PlainTriton(url, folder / "log")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for region in Path("/dev/shm").glob(f"{prefix}*"):
                region.unlink()


async def _wait(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 60) -> None:
    """Until both models have answered."""
    probe = Probe(url, (MODEL, PHOTO_MODEL))
    end = time.monotonic() + seconds
    asked = asyncio.ensure_future(_ask(probe, end))
    try:
        while not asked.done():
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, log.read_text(errors="replace")
            await asyncio.sleep(0.1)
        await asked
    finally:
        asked.cancel()
        await probe.close()


async def _ask(probe: Probe, end: float) -> None:
    while True:
        try:
            return await probe.ask()
        except ServerError:  # it listens, and loads
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
