"""Our client and the real server: tensors by shared memory are answered as without, and nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from upsnet.runtimes.predictor import RawPrediction
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
# Asks until it is killed.
ASKS = """
import sys
from tests.serving.conftest import make_request
from upsnet.runtimes.triton import TritonPredictor

predictor = TritonPredictor(sys.argv[1], shared_memory=True)
while True:
    predictor.predict(make_request(2, 320, 320))
    print("answered", flush=True)
"""


def left() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith("upsnet-client-")]


def assert_same(actual: RawPrediction, expected: RawPrediction) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("choice", [None, True])
def test_equals_onnxruntime(server: TritonServer, exported: Exported, choice: bool | None) -> None:
    with closing(TritonPredictor(server.url, shared_memory=choice)) as predictor, ThreadPoolExecutor(6) as pool:
        batches = [make_request(1 + each % 4, 320, 320 + 32 * (each % 3), seed=each) for each in range(18)]
        for batch, answer in zip(batches, pool.map(predictor.predict, batches), strict=True):
            assert_same(answer, exported.predict(batch))
        regions = predictor.connection.regions._free
        assert regions and not left()
    assert not regions


def test_a_client_that_is_killed_leaves_nothing(server: TritonServer) -> None:
    command = [sys.executable, "-c", ASKS, server.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as client:
        try:
            assert client.stdout is not None
            assert all(client.stdout.readline() == b"answered\n" for _ in range(3))
        finally:
            client.send_signal(signal.SIGKILL)
    assert not left()
    server.check()
