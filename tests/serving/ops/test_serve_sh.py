"""The container's serve.sh, tried on the Triton of the wheel: what it closes is closed, the probe is content, and the
autoscaler has its metrics."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient as Client
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from serving.repository import deploy
from tests.deploy.test_monitoring import TRITON, series
from tests.serving.conftest import Exported
from tests.serving.ops.container import Container, container, restriction
from upsnet.photos import encode_image

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def running(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A Triton whose probe has said that it is well; without rights, where this machine lets one give them up."""
    folder = tmp_path_factory.mktemp("serve_sh")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    with container(folder / "container", triton_environment, repository, before=restriction()) as started:
        yield started


def test_it_needs_no_rights_and_writes_nowhere_else(running: Container) -> None:
    """All of this file's tests are of a server like this, and of its models' processes."""
    if not restriction():
        pytest.skip("this machine allows no mount namespace (unshare --mount)")
    processes = [Path("/proc", str(running.process.pid))]
    children = (processes[0] / f"task/{running.process.pid}/children").read_text().split()
    processes += [Path("/proc", child) for child in children]
    assert len(processes) > 2
    for process in processes:
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
        mounts = [line.split()[4:6] for line in (process / "mountinfo").read_text().splitlines()]
        assert "ro" in dict(mounts)["/"].split(",") and "rw" in dict(mounts)["/tmp"].split(",")


@pytest.mark.parametrize(
    "call",
    [
        *("POST repository/index", "POST repository/models/upsnet/load", "POST repository/models/upsnet/unload"),
        *("GET systemsharedmemory/status", "GET cudasharedmemory/status", "GET models/upsnet/stats"),
        *("POST logging", "GET trace/setting", "POST models/upsnet/trace/setting"),
    ],
)
def test_http_is_closed(running: Container, call: str) -> None:
    verb, path = call.split()
    body = b"{}" if verb == "POST" else None
    request = urllib.request.Request(
        f"http://{running.http}/v2/{path}", body, {"upsnet-secret": "guessed"}, method=verb
    )
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
def test_grpc_is_closed(running: Container, call: Callable[[Client], object]) -> None:
    with Client(running.grpc) as client:
        assert client.is_model_ready("upsnet_photo")
        with pytest.raises(InferenceServerException, match="restricted"):
            call(client)


def test_the_autoscalers_metrics(running: Container) -> None:
    """A queue is seen while there is one; and of so many callers who ask without a pause as many requests are held."""
    callers = 12  # who fill both instances' batches of 4, and leave some to wait
    photo = encode_image(Image.new("RGB", (2400, 2400)), "JPEG")
    asked, queues = Event(), [0.0]

    def ask(_: int) -> None:
        with Client(running.grpc) as client:
            tensor = InferInput("photo", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[photo]], object))
            while not asked.is_set():
                client.infer("upsnet_photo", [tensor], outputs=[InferRequestedOutput("segments_json")])

    before, start = metrics(running), time.monotonic()
    with ThreadPoolExecutor(callers) as threads:
        asking = [threads.submit(ask, number) for number in range(callers)]
        while (max(queues) == 0 or len(queues) < 20) and time.monotonic() < start + 60:
            queues.append(sum(metrics(running)["nv_inference_pending_request_count"].values()))
            time.sleep(0.05)
        asked.set()
        for each in asking:
            each.result()
    after, seconds = metrics(running), time.monotonic() - start
    name, series = "nv_inference_request_duration_us", ("upsnet_photo", "1")
    held = (after[name][series] - before[name][series]) / 1e6 / seconds
    assert 0 < max(queues) < callers and sum(after["nv_inference_pending_request_count"].values()) == 0
    assert callers / 3 < held <= callers


def test_triton_has_the_metrics_that_are_asked_for(running: Container) -> None:
    told = series(scraped(running))
    wanted = {name: labels for name, labels in TRITON.items() if "_gpu_" not in name}
    assert {name: told[name] for name in wanted} == wanted


def metrics(running: Container) -> dict[str, dict[tuple[str, str], float]]:
    """By name, then by model and version."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    line = re.compile(r'^(\w+)\{model="(\w+)",version="(\d+)"\} (\S+)$', re.MULTILINE)
    for name, model, version, value in line.findall(scraped(running)):
        found.setdefault(name, {})[model, version] = float(value)
    return found


def scraped(running: Container) -> str:
    return urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=20).read().decode()
