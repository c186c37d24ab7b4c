"""A canary on a real service: two Tritons, callers of every kind, and what they notice."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from serving.repository import check_parts
from serving.rollouts.canary import CanaryLimits, run_canary
from serving.rollouts.lease import lease_path
from serving.rollouts.record import read_record
from serving.rollouts.steps import stage
from serving.server import TritonServer
from tests.serving.conftest import Exported
from tests.serving.ops.callers import beside

pytestmark = pytest.mark.triton
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "png")
    return stream.getvalue()


class Service:
    """`upsnet serve` on a repository with a candidate, and its callers."""

    def __init__(self, server: TritonServer, photos: Path) -> None:
        self.server, self.photos = server, photos
        self.answers: Counter[str] = Counter()  # by caller
        self.errors: list[str] = []

    @property
    def health(self) -> str:
        return f"127.0.0.1:{self.server.ports['metrics']}"

    @property
    def versions(self) -> Any:
        with urllib.request.urlopen(f"http://{self.health}/health/versions", timeout=5) as answer:
            return json.load(answer)

    def until_ready(self) -> None:
        end = time.monotonic() + 60
        while self.versions["versions"].get("2", {}).get("state") != "ready":
            assert time.monotonic() < end, self.versions
            time.sleep(0.1)

    def canary(self, **limits: Any) -> Any:
        record = read_record(self.server.repository)
        made = CanaryLimits(**{"photos": 10, "seconds": 60, **limits})
        return run_canary(self.server.repository, record, self.health, 1.0, made, progress=False)

    @contextmanager
    def callers(self, *names: str) -> Iterator[None]:
        """Photos by gRPC and REST, and tensors in shared memory and outside it, until the end; or those named."""
        ways = [each for each in self._ways() if not names or each.__name__ in names]
        with beside(*(partial(self._call, each) for each in ways)):
            yield
        assert self.errors == []

    def _call(self, ask: Callable[[ExitStack], Callable[[], None]], stop: threading.Event) -> None:
        try:
            with ExitStack() as stack:
                asked = ask(stack)
                while not stop.is_set():
                    asked()
                    self.answers[ask.__name__] += 1
                    stop.wait(0.02)
        except Exception as error:
            self.errors.append(f"{ask.__name__}: {error}")

    def _ways(self) -> list[Callable[[ExitStack], Callable[[], None]]]:
        url, photo = f"grpc://{self.server.url}", png()

        def client(stack: ExitStack, given: Any, **options: Any) -> Callable[[], None]:
            opened = stack.enter_context(upsnet.Client(url, retries=0, **options))
            return lambda: check(opened.predict(given).result.ids.shape == (48, 64))

        def check(true: bool) -> None:
            assert true

        def photos(stack: ExitStack) -> Callable[[], None]:
            return client(stack, photo)

        def tensors(stack: ExitStack) -> Callable[[], None]:
            return client(stack, PIXELS, shared_memory=False)

        def regions(stack: ExitStack) -> Callable[[], None]:
            return client(stack, PIXELS, shared_memory=True)

        def rest(stack: ExitStack) -> Callable[[], None]:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.ports["http"], timeout=30)
            stack.callback(connection.close)
            raw = struct.pack("<I", len(photo)) + photo
            told = {"name": "photo", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
            head = json.dumps({"inputs": [told], "outputs": [{"name": "segments_json"}]}).encode()

            def ask() -> None:
                headers = {"Inference-Header-Content-Length": str(len(head))}
                connection.request("POST", "/v2/models/upsnet_photo/infer", head + raw, headers)
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200, content

            return ask

        return [photos, tensors, regions, rest]


@pytest.fixture(scope="module")
def service(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    from serving.repository import deploy

    folder = tmp_path_factory.mktemp("canary")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    stage(repository, check_parts(exported.model, exported.manifest_path))
    options = (f"--record={folder / 'photos'}", "--record-share=100%")
    with TritonServer(repository, environment=triton_environment, http_port=0, options=options) as server:
        made = Service(server, folder / "photos")
        made.until_ready()
        yield made


def test_callers_of_every_kind_are_mirrored_and_notice_nothing(service: Service) -> None:
    with service.callers():
        verdict = service.canary(photos=40, min_identical=1.0)
    assert verdict.reasons == []
    figures = verdict.figures
    assert "its photo is in shared memory" in figures["skipped"]
    assert figures["photos"] >= 40 and figures["identical"] == 1.0 and figures["latency_ratio"] > 0
    assert figures["failed"] == {} and figures["restarts"] == 0 and figures["different"] == []
    assert set(service.answers) == {"photos", "tensors", "regions", "rest"}
    assert not lease_path(service.server.repository).exists()
    assert [path.read_bytes() for path in service.photos.iterdir()] == [png()]  # --record has each photo once


@pytest.mark.parametrize("way", ["rest", "tensors"])
def test_each_way_alone_is_compared(service: Service, way: str) -> None:
    with service.callers(way):
        verdict = service.canary(photos=3, min_identical=1.0)
    assert verdict.reasons == [] and verdict.figures["photos"] >= 3


def test_a_candidate_that_hangs_is_refused_and_nobody_notices(service: Service) -> None:
    pid = service.server.state["versions"]["2"]["triton_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with service.callers():
            verdict = service.canary(deadline=1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert verdict.reasons == ["canary: version 2 failed at 1 of 1 requests (1 of them too late; no answer within 1 s)"]


def test_a_candidate_that_is_killed_meanwhile_is_refused_and_nobody_notices(service: Service) -> None:
    service.until_ready()
    pid = service.server.state["versions"]["2"]["triton_pid"]

    before = (service.versions["canary"] or {}).get("lease")

    def kill() -> None:
        while (told := service.versions["canary"] or {}).get("lease") in (None, before) or not told["mirrored"]:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with service.callers():
        killer.start()
        verdict = service.canary(photos=100_000)
        killer.join()
    assert verdict.reasons and all("version 2" in reason for reason in verdict.reasons)
    assert service.versions["serving"] == 1 and service.versions["versions"]["1"]["restarts"] == 0
