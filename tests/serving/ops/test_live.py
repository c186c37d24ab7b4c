"""What an operator and a REST client see of a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from tests.serving.ops.fakes import parse
from tests.serving.ops.test_deployment import STUB, TRITON, exposed
from tests.serving.ops.test_probe import probe

pytestmark = pytest.mark.triton
CHUNKS = 600_000  # of one byte; 524 000 are enough to kill Triton 24.10


def get(server: TritonServer, path: str, port: str = "metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports[port]}{path}", timeout=20) as reply:
        return reply.read().decode()


def samples(server: TritonServer) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(get(server, "/metrics")):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def infer(server: TritonServer, exported: Exported) -> tuple[np.ndarray, np.ndarray]:
    """What REST answers, and what this process does."""
    batch = make_request(2, 64, 96)
    arrays = {"images": batch.images, "sizes": batch.sizes, "scales": batch.scales[:, None]}
    kinds = {"images": "UINT8", "sizes": "INT32", "scales": "FP32"}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.ports['http']}") as client:
        inputs = [tritonclient.http.InferInput(name, array.shape, kinds[name]) for name, array in arrays.items()]
        for tensor in inputs:
            tensor.set_data_from_numpy(arrays[tensor.name()])
        answer = client.infer("upsnet", inputs, request_id="of-the-test").as_numpy("panoptic")
    assert answer is not None
    return answer, exported.predict(batch).panoptic


def test_rest_answers_as_this_process_does_and_is_counted(server: TritonServer, exported: Exported) -> None:
    labels = {"protocol": "http", "method": "ModelInfer", "model": "upsnet", "outcome": "ok"}

    def count() -> float:
        return next(each.value for each in samples(server)["upsnet_requests_total"] if each.labels == labels)

    before = count()
    answer, wanted = infer(server, exported)
    np.testing.assert_array_equal(answer, wanted)
    assert count() == before + 1


def test_every_metric_of_the_dashboard_is_there(server: TritonServer, exported: Exported, tmp_path: Path) -> None:
    infer(server, exported)
    assert asyncio.run(probe(f"http://127.0.0.1:{server.ports['http']}"))[0] == 0
    found = samples(server)
    wanted = exposed(tmp_path) | STUB | {name: labels for name, labels in TRITON.items() if "gpu" not in name}
    assert wanted.keys() <= found.keys()
    for name, labels in STUB.items():
        assert {label for each in found[name] for label in each.labels} == labels
    assert {each.labels["process"] for each in found["upsnet_resident_memory_bytes"]} >= {"server", "upsnet"}


def test_health(server: TritonServer) -> None:
    told = json.loads(get(server, "/health"))
    assert told["state"] == "ready" and told["reasons"] == [] and told["memory_bytes"]["server"] > 1 << 20
    assert get(server, "/v2/health/ready", "http") == ""
    assert json.loads(get(server, "/v2", "http"))["name"] == "triton"


def test_a_chunked_body_that_kills_triton(server: TritonServer, exported: Exported) -> None:
    pid = server.pid
    with socket.create_connection(("127.0.0.1", server.ports["http"]), timeout=60) as connection:
        head = "POST /v2/models/upsnet/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + b"1\r\n[\r\n" * CHUNKS + b"0\r\n\r\n")
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert parse(answer)[0] == 400
    time.sleep(0.5)  # it died within two seconds where it got them
    infer(server, exported)
    assert server.pid == pid


def test_faults_are_told_without_paths(server: TritonServer) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.ports['http']}") as client:
        tensor = tritonclient.http.InferInput("nothing", [1, 1], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.uint8))
        with pytest.raises(InferenceServerException) as error:
            client.infer("upsnet", [tensor])
        assert error.value.status() == "400" and "/" not in error.value.message()
        for call in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="outside"):
                call()
