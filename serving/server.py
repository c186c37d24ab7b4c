"""Starts and stops a real Triton Inference Server without a container.

The server lives in a virtual environment of its own (serving/environment.py). It serves configs/cpu.pbtxt of the model
repository: ONNX Runtime inside model.py.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import numpy as np

import upsnet
from serving.environment import Environment
from serving.repository import latest_version
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.files import writing
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.triton import TritonPredictor

# Becomes the server, after asking the kernel to send it SIGTERM should this process die without stopping it.
LAUNCHER = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class TritonServer:
    """A context manager: inside it the server runs and has answered a test inference; after it nothing is left of it.

    repository is the model repository. Ports of 0 are picked free. log keeps the output. A start
    that is not ready after start_timeout seconds fails; so does one whose model refuses a zero image of probe_size
    (height, width). InputError, in one line, for whatever the caller can cure.
    The server ends with the thread that started it, even if that one is killed.
    """

    def __init__(
        self,
        repository: Path,
        *,
        environment: Path | None = None,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        log: Path | None = None,
        start_timeout: float = 60.0,
        probe_size: tuple[int, int] = (128, 128),
    ) -> None:
        self.repository, self.host = repository, host
        self.ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self.start_timeout, self.probe_size = start_timeout, probe_size
        self._environment, self._log = environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """host:port of gRPC, as a client on this machine reaches it."""
        return f"{self._reachable}:{self.ports['grpc']}"

    @property
    def log(self) -> Path:
        """The server's output; without a file of the caller's own, it goes when the server stops."""
        if self._log is not None:
            return self._log
        if self._scratch is None:
            raise InputError("the Triton server has no log: it is not running")
        return Path(self._scratch.name) / "triton.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise InputError("the Triton server is not running")
        return self._process.pid

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        environment = Environment.find(self._environment)
        version = latest_version(self.repository)
        for name in ("model.onnx", "manifest.json"):
            if not (version / name).is_file():
                raise InputError(
                    f"there is no model to serve: {version / name} is missing; make one with `make engine`"
                )
        self.ports = pick_ports(self.host, self.ports)
        try:
            self._launch(environment)
            self._wait_until_ready(version / "manifest.json")
        except BaseException:  # Ctrl-C too: a server that never got ready must not stay
            self.stop(drain=2)
            raise

    def check(self, timeout: float = 60.0) -> None:
        """One inference of a zero image. Triton's own health endpoints stay READY when the model's process is dead."""
        self._probe(latest_version(self.repository) / "manifest.json", timeout)

    def wait(self) -> None:
        """Blocks as long as the server runs; InputError when it ends by itself."""
        if self._process is not None:
            self._process.wait()
            raise InputError(f"the Triton server stopped: {self._last_words()}")

    def stop(self, drain: float = 30.0) -> None:
        """SIGTERM, at most `drain` seconds for requests under way, then SIGKILL for what is left of its group."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.terminate()
                process.wait(drain)
        except subprocess.TimeoutExpired:
            pass  # what follows ends it
        finally:
            if process is not None:
                kill_group(process.pid)
                process.wait()
            if self._scratch is not None:
                for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
                    region.unlink(missing_ok=True)
                self._scratch.cleanup()
                self._scratch = None

    @property
    def _reachable(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def _shm_prefix(self) -> str:
        return f"upsnet-{os.getpid()}-{self.ports['grpc']}-"

    def _launch(self, environment: Environment) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="upsnet-triton-")
        folder = Path(self._scratch.name)
        (folder / "repository").symlink_to(self.repository.absolute())  # the backend fails on paths with a space
        (folder / "backends/python").mkdir(parents=True)
        for file in environment.backend_files:
            (folder / "backends/python" / file.name).symlink_to(file)
        (folder / "backends/python/upsnet").symlink_to(Path(upsnet.__file__).parent)  # on the models' path
        with writing(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.open("wb").close()
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
        server = environment.triton / "bin/tritonserver"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*launcher, server, *self._flags(environment, folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment.variables(),
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server; its stubs are in its group
            )

    def _flags(self, environment: Environment, folder: Path) -> list[str]:
        addresses = [f"--{name}-address={self.host}" for name in self.ports]
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        return [
            f"--model-repository={folder / 'repository'}",
            f"--backend-directory={folder / 'backends'}",
            f"--cache-directory={environment.triton / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *addresses,
            *ports,
            "--model-control-mode=explicit",
            f"--load-model={MODEL}",
            f"--load-model={PHOTO_MODEL}",
            "--model-config-name=cpu",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
        ]

    def _wait_until_ready(self, manifest: Path) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._listens():  # Triton opens its ports once the model is loaded
            if self._process is not None and self._process.poll() is not None:
                raise InputError(f"the Triton server did not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise InputError(
                    f"the Triton server was not ready after {self.start_timeout:g} s: {self._last_words()}"
                )
            time.sleep(0.05)
        self._probe(manifest, max(1.0, deadline - time.monotonic()))

    def _listens(self) -> bool:
        try:
            socket.create_connection((self._reachable, self.ports["grpc"]), timeout=1).close()
        except OSError:
            return False
        return True

    def _probe(self, manifest: Path, timeout: float) -> None:
        predictor = TritonPredictor(self.url, manifest=manifest, timeout=timeout)
        try:
            image = np.zeros((1, *self.probe_size, 3), np.uint8)
            predictor.predict(NetworkBatch(image, np.array([self.probe_size], np.int32), np.ones(1, np.float32)))
        except InputError as error:
            raise InputError(
                f"the Triton server runs, but a test inference failed: {error}; {self._last_words()}"
            ) from error
        finally:
            predictor.close()

    def _last_words(self) -> str:
        """The log's last error, else its last line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip(" ;")]
        # Every machine without a GPU has the CUDA line.
        errors = [line for line in lines if re.match(r"E\d{4} |error: ", line) and "CudaDriverHelper" not in line]
        last = (errors or lines or ["nothing"])[-1]
        last = re.sub(r"^[IWE]\d{4} .*?\] ", "", last).split("\\n")[0].strip('" ')
        return "its log says: " + re.sub(r"/\S*/upsnet-triton-\w+/repository", lambda _: str(self.repository), last)


def pick_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """The same ports, with a free one in the place of each 0. InputError when one is taken, or wanted twice."""
    if not host.strip() or not host.isprintable():  # an empty one would be every address of this machine
        raise InputError(f"{host!r} is no address to listen on; 127.0.0.1 is this machine alone")
    ports: dict[str, int] = {}
    sockets = []
    try:
        for name, port in wanted.items():
            if other := next((other for other, taken in ports.items() if taken == port), None):
                raise InputError(f"port {port} is wanted for {other} and for {name}; give another {name} port")
            sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sockets[-1].bind((host, port))
            except (OSError, OverflowError, UnicodeError) as error:
                raise InputError(f"cannot listen on {host}:{port} for {name}: {_why(error, name)}") from error
            ports[name] = sockets[-1].getsockname()[1]
    finally:
        for each in sockets:
            each.close()
    return ports


def _why(error: Exception, name: str) -> str:
    """Why a port cannot be bound, and the cure."""
    if isinstance(error, PermissionError):
        return f"ports below 1024 are the system's; give another {name} port"
    if isinstance(error, OverflowError) or getattr(error, "errno", None) == errno.EADDRINUSE:
        return f"{getattr(error, 'strerror', None) or error}; give another {name} port"
    return f"{getattr(error, 'strerror', None) or error}; --host is an IPv4 address of this machine"


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
