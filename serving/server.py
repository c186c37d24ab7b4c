"""A real Triton server for as long as a `with` lasts: `upsnet serve` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from serving.environment import ROOT
from serving.scratch import Scratch, kill_group
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.triton import TritonPredictor

SPARE = 30.0  # seconds beyond start_timeout, for what comes before and after the start
SIDE = 128  # of the image in a test inference


class TritonServer:
    """A context manager: inside it the server runs and has answered a test inference; after it, and after a kill -9 of
    this process, nothing is left of it.

    repository is the model repository. Ports of 0 are picked free; http_port None: no REST. log keeps Triton's output.
    InputError, in one line, for whatever the caller can cure.
    """

    def __init__(
        self,
        repository: Path,
        *,
        environment: Path | None = None,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int | None = None,
        metrics_port: int = 0,
        log: Path | None = None,
        start_timeout: float = 60.0,
        options: tuple[str, ...] = (),  # more of `upsnet serve`
    ) -> None:
        self.repository, self.host, self.start_timeout = repository, host, start_timeout
        self.ports: dict[str, int] = {}
        self._options = [f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}", *options]
        if http_port is not None:
            self._options.append(f"--http-port={http_port}")
        self._environment, self._log = environment, log
        self._scratch: Scratch | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """host:port of gRPC."""
        return f"[{self.host}]:{self.ports['grpc']}" if ":" in self.host else f"{self.host}:{self.ports['grpc']}"

    @property
    def log(self) -> Path:
        """Triton's output; without a file of the caller's own, it goes when the server stops."""
        return self._log or self._folder / "triton.log"

    @property
    def pid(self) -> int:
        """Of Triton, which a restart changes."""
        return self.state["triton_pid"]

    @property
    def state(self) -> dict[str, Any]:
        """The service's health, ports and process, as they are now."""
        return read_json(self._folder / "state.json")

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._scratch = Scratch()
        try:
            self._launch()
            self._wait_until_ready()
        except BaseException:  # Ctrl-C too: a server that never got ready must not stay
            self.stop(drain=2)
            raise

    def check(self, timeout: float = 60.0) -> None:
        """One inference of a zero image."""
        predictor = TritonPredictor(self.url, timeout=timeout)
        try:
            image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
            predictor.predict(NetworkBatch(image, np.array([[SIDE, SIDE]], np.int32), np.ones(1, np.float32)))
        finally:
            predictor.close()

    def wait(self) -> None:
        """Blocks as long as the service runs; InputError when it ends by itself."""
        if self._process is not None:
            self._process.wait()
            raise InputError(f"the Triton server stopped: {self._last_words()}")

    def stop(self, drain: float = 30.0) -> None:
        """SIGTERM, at most `drain` seconds for requests under way, then SIGKILL."""
        process, self._process = self._process, None
        scratch, self._scratch = self._scratch, None
        try:
            if process is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(drain)
        finally:
            if process is not None:
                kill_group(process.pid)
                process.wait()
            if scratch is not None:
                scratch.guard(None)
                scratch.close()

    @property
    def _folder(self) -> Path:
        if self._scratch is None:
            raise InputError("the Triton server is not running")
        return self._scratch.folder

    def _launch(self) -> None:
        assert self._scratch is not None
        command = [sys.executable, "-P", "-m", "serving.serve", f"--repository={self.repository}", f"--log={self.log}"]
        command += [f"--host={self.host}", f"--start-timeout={self.start_timeout:g}", *self._options]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        if self._environment is not None:
            variables["UPSNET_TRITON_ENV"] = str(self._environment)
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, f"--state={self._folder / 'state.json'}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it
            )
        self._scratch.guard(self._process.pid)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_timeout + SPARE
        while not ((self._folder / "state.json").is_file() and self.state["state"] == "ready"):
            if self._process.poll() is not None:
                raise InputError(self._last_words())
            if time.monotonic() > deadline:
                raise InputError(f"the Triton server was not ready after {self.start_timeout:g} s")
            time.sleep(0.05)
        self.ports = self.state["ports"]

    def _last_words(self) -> str:
        """What `upsnet serve` ended with."""
        lines = (self._folder / "output").read_text(errors="replace").splitlines() or ["it said nothing"]
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
