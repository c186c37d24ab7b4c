"""The container's serve.sh, tried on the Triton of the wheel: what it closes is closed, and the probe is content."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient as Client
from tritonclient.utils import InferenceServerException

import upsnet
from serving.environment import Environment
from serving.repository import deploy
from tests.serving.conftest import Exported
from tests.serving.ops.test_deployment import DEPLOYMENT
from tests.serving.ops.test_probe import probe

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def ports(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Addresses of HTTP and gRPC, of a Triton whose probe has said that it is well."""
    folder, found = tmp_path_factory.mktemp("serve_sh"), Environment.find(triton_environment)
    for place, files in (("backends/python", found.backend_files), ("python", [Path(upsnet.__file__).parent])):
        (folder / place).mkdir(parents=True)
        for file in files:
            (folder / place / file.name).symlink_to(file)
    variables = {
        "MODELS": str(deploy(exported.model, exported.manifest_path, folder / "repository")),
        "PATH": f"{found.triton / 'bin'}:{found.folder / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{found.site / 'nvidia_pytriton.libs'}:{found.libraries}",
        "PYTHONPATH": str(folder / "python"),
    }
    http, grpc, metrics = (_free_port() for _ in range(3))
    prefix = f"upsnet-test-{uuid.uuid4().hex[:8]}-"
    flags = [f"--backend-directory={folder / 'backends'}", f"--backend-config=python,shm-region-prefix-name={prefix}"]
    flags += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    flags += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--allow-gpu-metrics=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [DEPLOYMENT / "serve.sh", *flags], env=variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(120):
            if asyncio.run(probe(f"http://127.0.0.1:{http}"))[0] == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
        else:
            pytest.fail("the probe was never content")
        yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        process.terminate()
        assert process.wait(30) == 0  # within its own time for the requests under way
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for region in Path("/dev/shm").glob(f"{prefix}*"):
            region.unlink()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "call",
    [
        *("POST repository/index", "POST repository/models/upsnet/load", "POST repository/models/upsnet/unload"),
        *("GET systemsharedmemory/status", "GET cudasharedmemory/status", "GET models/upsnet/stats"),
        *("POST logging", "GET trace/setting", "POST models/upsnet/trace/setting"),
    ],
)
def test_http_is_closed(ports: tuple[str, str], call: str) -> None:
    verb, path = call.split()
    body = b"{}" if verb == "POST" else None
    request = urllib.request.Request(f"http://{ports[0]}/v2/{path}", body, {"upsnet-secret": "guessed"}, method=verb)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=20)
    assert error.value.code == 403


@pytest.mark.parametrize(
    "call",
    [
        Client.get_model_repository_index,
        lambda client: client.load_model("upsnet"),
        lambda client: client.unload_model("upsnet"),
        Client.get_system_shared_memory_status,
        lambda client: client.register_system_shared_memory("x", "/x", 1),
        Client.get_cuda_shared_memory_status,
        Client.get_inference_statistics,
        lambda client: client.update_log_settings({"log_info": False}),
        lambda client: client.update_trace_settings("upsnet", {}),
    ],
)
def test_grpc_is_closed(ports: tuple[str, str], call: Callable[[Client], object]) -> None:
    with Client(ports[1]) as client:
        assert client.is_model_ready("upsnet_photo")
        with pytest.raises(InferenceServerException, match="restricted"):
            call(client)
