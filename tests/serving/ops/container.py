"""The container's serve.sh on the Triton of the wheel, and versions of the stand-in to serve by it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import upsnet
from serving.environment import Environment
from serving.repository import Parts, check_parts
from tests.deploy.manifests import CONTAINER
from tests.serving.conftest import Exported
from tests.serving.ops.test_probe import probe

# As Compose and Kubernetes run it: only /tmp and /dev/shm can be written to, and root has no rights that others lack
RESTRICT = """mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,bind,ro / &&
    exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@" """


def restriction() -> list[str]:
    """The words before a command that has no rights. Empty where this machine forbids a mount namespace."""
    words = ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--mount", "sh", "-c", RESTRICT, "sh"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except OSError:  # no unshare
        return []


@dataclass(frozen=True)
class Container:
    """One that runs: addresses of HTTP, gRPC and the metrics, and what it runs in."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def container(
    folder: Path,
    environment: Path,
    repository: Path,
    variables: Mapping[str, str] = {},
    more: Sequence[str] = (),
    before: Sequence[str] = (),
) -> Iterator[Container]:
    """serve.sh over the repository, with these variables of its environment, more flags, and words before it, until
    the end of the `with`. Inside it its probe has been content, or it has ended. Temporary files go into `folder`."""
    if shutil.disk_usage("/dev/shm").total < 512 << 20:
        pytest.skip("needs 512 MiB of /dev/shm: serve.sh refuses less")
    folder.mkdir(parents=True, exist_ok=True)
    found = Environment.find(environment)
    for place, files in (("backends/python", found.backend_files), ("python", [Path(upsnet.__file__).parent])):
        (folder / place).mkdir(parents=True)
        for file in files:
            (folder / place / file.name).symlink_to(file)
    inside = {
        "MODELS": str(repository),
        "PATH": f"{found.triton / 'bin'}:{found.folder / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{found.site / 'nvidia_pytriton.libs'}:{found.libraries}",
        "PYTHONPATH": str(folder / "python"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    http, grpc, metrics = (_free_port() for _ in range(3))
    prefix = f"upsnet-test-{uuid.uuid4().hex[:8]}-"
    flags = [f"--backend-directory={folder / 'backends'}", f"--backend-config=python,shm-region-prefix-name={prefix}"]
    flags += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    flags += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--allow-gpu-metrics=false"]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*before, CONTAINER / "serve.sh", *flags, *more],
            env=inside,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    running = Container(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}", process, log)
    try:
        for _ in range(120):
            if process.poll() is not None or asyncio.run(probe(f"http://{running.http}"))[0] == 0:
                break
        else:
            pytest.fail("the probe was never content")
        yield running
        if process.poll() is None:
            process.terminate()
            code = process.wait(30)  # within its own time for the requests under way
            # Triton aborts at its very end where another server of this user has swept its folder out of /tmp.
            assert code == 0 or "TRITONBACKEND_Finalize" in running.said, running.said[-2000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for region in Path("/dev/shm").glob(f"{prefix}*"):
            region.unlink()


def retrained(exported: Exported, folder: Path, number: int) -> Parts:
    """The stand-in as another training would leave it: its segments' rows are greater by `number`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(exported.model)
    (rows,) = (each for each in model.graph.initializer if each.name == "rows")
    array = numpy_helper.to_array(rows).copy()
    array[..., 1:] += number
    rows.CopyFrom(numpy_helper.from_array(array, "rows"))
    onnx.save(model, folder / "model.onnx")
    exported.manifest.model_copy(update={"onnx_sha256": ""}).save(folder / "manifest.json")
    return check_parts(folder / "model.onnx", folder / "manifest.json")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
