"""The container's serve.sh, tried on the Triton of the wheel: what it closes is closed, and the probe is content."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient as Client
from tritonclient.utils import InferenceServerException

from serving.repository import deploy
from tests.serving.conftest import Exported
from tests.serving.ops.container import container

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def ports(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Addresses of HTTP and gRPC, of a Triton whose probe has said that it is well."""
    folder = tmp_path_factory.mktemp("serve_sh")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    with container(folder / "container", triton_environment, repository) as running:
        yield running.http, running.grpc


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
