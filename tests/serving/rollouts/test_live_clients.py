"""Clients of every kind on the real service, while a version of other classes comes, serves and goes again."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

import upsnet
from serving.front.rest_request import HEADER_LENGTH
from serving.repository import check_parts, deploy
from serving.rollouts import steps
from serving.rollouts.record import read_record
from serving.server import TritonServer
from tests.serving.conftest import Exported, stand_in
from tests.serving.rollouts.test_live_fleet import question
from upsnet.errors import ServerError
from upsnet.files import sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
GUARD = 120.0  # seconds until something counts as never happening
RED = np.full((50, 70, 3), (255, 0, 0), np.uint8)  # what the stand-in's first class is
NAMES = {"1": "sky", "2": "heaven"}  # of that class, by version


@pytest.fixture(scope="module")
def service(exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Version 1 serves; version 2, of another class table and another network size, is staged."""
    folder = tmp_path_factory.mktemp("clients")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    with TritonServer(repository, environment=triton_environment, http_port=0, options=("--standby=0.5",)) as server:
        steps.stage(repository, check_parts(*other_model(exported, folder)))
        yield server


def other_model(exported: Exported, folder: Path) -> tuple[Path, Path]:
    sky, *others = exported.manifest.categories
    changed = {
        "categories": [sky.model_copy(update={"id": 11, "name": "heaven"}), *others],
        "resize": ResizeRule(short_side=96, max_side=128),
        "onnx_sha256": "",
    }
    manifest = exported.manifest.model_copy(update=changed)
    model, described = folder / "model.onnx", folder / "model.manifest.json"
    stand_in(model, manifest)
    onnx.checker.check_model(onnx.load(model))
    manifest.model_copy(update={"onnx_sha256": sha256(model)}).save(described)
    return model, described


class Callers:
    """Each asks in a thread of its own, until the end: what it was answered, and by which version where it is told."""

    def __init__(self, *asks: Callable[[], str]) -> None:
        self.answers: dict[Callable[[], str], list[str]] = {ask: [] for ask in asks}
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(ask,)) for ask in asks]

    def __enter__(self) -> Callers:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def _call(self, ask: Callable[[], str]) -> None:
        while not self._stop.is_set():
            try:
                self.answers[ask].append(ask())
            except Exception as error:
                self.failures.append(f"{ask}: {error!r}")
                return

    def until_all_say(self, version: str) -> None:
        """Three times in a row."""
        end = time.monotonic() + GUARD
        before = {ask: len(answers) for ask, answers in self.answers.items()}
        while not all(self.answers[ask][before[ask] :][-3:] == [version] * 3 for ask in self.answers):
            last = {ask.__name__: (len(answers), answers[-3:]) for ask, answers in self.answers.items()}
            assert not self.failures and time.monotonic() < end, (self.failures, last)
            time.sleep(0.02)


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, "PNG")
    return buffer.getvalue()


def as_json(message: Any) -> tuple[bytes, bytes]:
    """The same request for REST: its JSON, and the tensors that follow it."""
    tensors = [
        {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        | {"parameters": {"binary_data_size": len(content)}}
        for each, content in zip(message.inputs, message.raw_input_contents, strict=True)
    ]
    wanted = [{"name": "segment_count"}]
    return json.dumps({"inputs": tensors, "outputs": wanted}).encode(), b"".join(message.raw_input_contents)


def version_of(prediction: Any) -> str:
    """By the names and the ids of what it has found, which must go together."""
    ((id, name),) = {(each.category_id, each.name) for each in prediction.segments}
    version = next(number for number, known in NAMES.items() if known == name)
    assert (prediction.ids > 0).all() and id == {"1": 1, "2": 11}[version]
    return version


def until(so: Callable[[], object]) -> None:
    end = time.monotonic() + GUARD
    while not so():
        assert time.monotonic() < end
        time.sleep(0.05)


def versions(server: TritonServer) -> dict[str, str]:
    """The role of each that is ready."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['metrics']}/health/versions") as answer:
        told = json.load(answer)["versions"]
    return {number: each["role"] for number, each in told.items() if each["state"] == "ready"}


def test_no_client_notices_but_by_the_classes(service: TritonServer) -> None:
    photo = encoded()
    url = f"grpc://{service.url}"
    until(lambda: versions(service) == {"1": "serving", "2": "candidate"})
    with (
        upsnet.Client(url, retries=0) as files,
        upsnet.Client(url, retries=0, shared_memory=True) as pixels,
        upsnet.load(url) as model,
        grpc.insecure_channel(service.url) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = question(1)
        head, tail = as_json(message)

        def stream() -> str:
            """Several messages of one stream: it outlives the switches between them."""
            found = [each.infer_response.model_version for each in stub.ModelStreamInfer(iter([message] * 5))]
            assert len(found) == 5 and all(found)
            return found[-1]

        def rest() -> str:
            path = f"http://127.0.0.1:{service.ports['http']}/v2/models/upsnet/infer"
            asked = urllib.request.Request(path, head + tail, {HEADER_LENGTH: str(len(head))})
            with urllib.request.urlopen(asked) as answer:
                return json.loads(answer.read())["model_version"]

        def of_a_file() -> str:
            return version_of(files.predict(photo))

        def of_pixels() -> str:
            return version_of(pixels.predict(RED))

        with upsnet.Client(url, version=2) as named:
            assert version_of(named.predict(photo)) == version_of(named.predict(RED)) == "2"
        assert version_of(model.predict(RED)) == "1"
        with Callers(of_a_file, of_pixels, stream, rest) as callers:
            callers.until_all_say("1")
            steps.promote(service.repository, read_record(service.repository), {}, 0.0)
            callers.until_all_say("2")
            until(lambda: versions(service) == {"2": "serving"})  # version 1 has left, and its regions with it
            with pytest.raises(ServerError, match="its class table is another; open it again, or name a version"):
                model.predict(RED)
            assert upsnet.load(url).manifest.categories[0].name == "heaven"
            steps.rollback(service.repository)  # it is started again
            callers.until_all_say("1")
        assert callers.failures == []


def test_what_a_version_is_asked_by_its_number(service: TritonServer, exported: Exported) -> None:
    until(lambda: versions(service).get("1") == "serving")
    with grpc.insecure_channel(service.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="upsnet_photo", version="1"))
        assert "1" in metadata.versions
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelConfig(service_pb2.ModelConfigRequest(name="upsnet", version="9"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    predictor = TritonPredictor(service.url, version=1)
    assert predictor.manifest == Manifest.load(exported.manifest_path) and predictor.served.version == "1"
    predictor.close()
