"""What an operator and a REST client see of a real server."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from serving.front.rest_request import HEADER_LENGTH
from serving.server import TritonServer
from tests.deploy.test_monitoring import STUB, TRITON, exposed, series
from tests.serving.conftest import Exported, make_request
from tests.serving.ops.fakes import parse
from tests.serving.ops.test_probe import probe

pytestmark = pytest.mark.triton
CHUNKS = 600_000  # of one byte; 524 000 are enough to kill Triton 24.10


def get(server: TritonServer, path: str, port: str = "metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports[port]}{path}", timeout=20) as reply:
        return reply.read().decode()


def post(
    server: TritonServer, path: str, body: bytes = b"", header: str | None = None
) -> tuple[int, str | None, bytes]:
    """The answer's status, length of JSON, and body."""
    headers = {} if header is None else {HEADER_LENGTH: header}
    request = urllib.request.Request(f"http://127.0.0.1:{server.ports['http']}{path}", body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.headers[HEADER_LENGTH], reply.read()
    except urllib.error.HTTPError as error:
        return error.code, None, error.read()


def infer(server: TritonServer, exported: Exported) -> tuple[np.ndarray, np.ndarray]:
    """What REST answers, and what this process does."""
    batch = make_request(2, 64, 96)
    tensors, tail = [], b""
    for (name, array), kind in zip(batch._asdict().items(), ("UINT8", "INT32", "FP32"), strict=True):
        shape = [2, 1] if name == "scales" else list(array.shape)
        size = {"binary_data_size": array.nbytes}
        tensors.append({"name": name, "shape": shape, "datatype": kind, "parameters": size})
        tail += array.tobytes()
    outputs = [{"name": "panoptic", "parameters": {"binary_data": True}}]
    text = json.dumps({"id": "of-the-test", "inputs": tensors, "outputs": outputs}).encode()
    status, length, body = post(server, "/v2/models/upsnet/infer", text + tail, str(len(text)))
    assert status == 200 and length is not None, body
    assert json.loads(body[: int(length)])["id"] == "of-the-test"
    return np.frombuffer(body[int(length) :], np.uint8).reshape(2, 64, 96), exported.predict(batch).panoptic


def test_rest_answers_as_this_process_does_and_is_counted(server: TritonServer, exported: Exported) -> None:
    sample = r'upsnet_requests_total{method="ModelInfer",model="upsnet",outcome="ok",protocol="http"} (\d+)'

    def count() -> int:
        found = re.search(sample, get(server, "/metrics"))
        assert found is not None
        return int(found[1])

    before = count()
    answer, wanted = infer(server, exported)
    np.testing.assert_array_equal(answer, wanted)
    assert count() == before + 1


def test_every_metric_of_the_dashboard_is_there(server: TritonServer, exported: Exported, tmp_path: Path) -> None:
    infer(server, exported)
    assert asyncio.run(probe(f"http://127.0.0.1:{server.ports['http']}"))[0] == 0
    text = get(server, "/metrics")
    found = series(text)
    wanted = exposed(tmp_path) | STUB | {name: labels for name, labels in TRITON.items() if "gpu" not in name}
    assert wanted.keys() - {"upsnet_recorded_photos_total"} <= found.keys(), "but for what --record alone has"
    assert all(found[name] == labels for name, labels in STUB.items())
    assert {"server", "upsnet"} <= set(re.findall(r'upsnet_resident_memory_bytes{process="(\w+)"}', text))


def test_health(server: TritonServer) -> None:
    told = json.loads(get(server, "/health"))
    assert told["state"] == "ready" and told["reasons"] == [] and told["memory_bytes"]["server"] > 1 << 20
    assert get(server, "/v2/health/ready", "http") == ""
    metadata = json.loads(get(server, "/v2", "http"))
    assert metadata["name"] == "triton"
    assert set(metadata["extensions"]) == {"model_configuration", "binary_tensor_data", "parameters", "statistics"}


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
    tensor = {"name": "nothing", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
    status, _, body = post(server, "/v2/models/upsnet/infer", json.dumps({"inputs": [tensor]}).encode())
    message = json.loads(body)["error"]
    assert status == 400 and "nothing" in message and "/" not in message
    wrong: tuple[object, ...] = ({}, "x", [["x"]], [{}], 1, None)
    for data in wrong:
        body = json.dumps({"inputs": [tensor | {"name": "images", "shape": [1, 1, 1, 3], "data": data}]}).encode()
        status, _, told = post(server, "/v2/models/upsnet/infer", body)
        assert status == 400, told


@pytest.mark.parametrize(
    "call",
    [
        "repository/index",
        "repository/models/upsnet/unload",
        "logging",
        "systemsharedmemory/unregister",
        "trace/setting",
    ],
)
def test_nobody_manages_the_server(server: TritonServer, exported: Exported, call: str) -> None:
    status, _, body = post(server, f"/v2/{call}", b"{}")
    assert status == 403 and "outside" in json.loads(body)["error"]
    infer(server, exported)
