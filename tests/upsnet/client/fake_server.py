"""A server in this process that answers as `upsnet serve` does, from a fake network, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.conftest import FakePredictor
from upsnet.contract import METADATA_KEY, MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.photos import read_photo
from upsnet.runtimes.predictor import predict_photos

grpc = pytest.importorskip("grpc", reason="needs tritonclient (pip install 'upsnet-trt[triton]')")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", reason="needs tritonclient")
service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc", reason="needs tritonclient")

Trouble = Callable[[Any], None]  # is given the call's context; may abort it


Servicer: Any = service_pb2_grpc.GRPCInferenceServiceServicer


class FakeServer(Servicer):
    """`troubles` are taken one for each inference, before it is answered; then all is well."""

    def __init__(self, photos: bool = True, credentials: Any = None, tells: bool = True) -> None:
        self.predictor = FakePredictor("fake")
        self.version = ""  # that is in service; empty: it does not tell
        self.others: dict[str, FakePredictor] = {}  # versions that a request may name
        self.photos, self.ready, self.tells = photos, True, tells  # tells: the manifest
        self.stages: dict[str, float] | None = None  # that it tells of photos, where it does
        self.versions: list[int] = []  # that it says it runs
        self.troubles: list[Trouble] = []
        self.asked: list[tuple[str, float]] = []  # each inference's model, and the seconds that were left for it
        self.asked_versions: list[str] = []  # that each inference names
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0
        self.gate = threading.Event()  # no inference is answered before it is set
        self.gate.set()
        self.server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.url = f"{'grpcs' if credentials else 'grpc'}://127.0.0.1:{self.port}"
        self.server.start()

    def stop(self) -> None:
        self.gate.set()
        self.server.stop(0).wait()

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="0.0")

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check_model(request, context)
        outputs = [{"name": "stages_json"}] if request.name == PHOTO_MODEL and self.stages else []
        versions = list(map(str, self.versions))
        return service_pb2.ModelMetadataResponse(name=request.name, outputs=outputs, versions=versions)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._check_model(request, context)
        if not self.ready:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is restarting; retry")
        predictor = self.predictor if not request.version else self._named(request.version, context)
        manifest = {"string_value": predictor.manifest.model_dump_json()}
        version = request.version or self.version
        return service_pb2.ModelConfigResponse(
            config={
                "name": request.name,
                "max_batch_size": 4,
                "parameters": {METADATA_KEY: manifest} if self.tells else {},
                "version_policy": {"specific": {"versions": [int(version)]}} if version else None,
            }
        )

    def _check_model(self, request: Any, context: Any) -> None:
        if request.name != MODEL and not (self.photos and request.name == PHOTO_MODEL):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")

    def _named(self, version: str, context: Any) -> FakePredictor:
        found = dict.fromkeys([self.version, *map(str, self.versions)], self.predictor) | self.others
        if version not in found:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no version {version}; there is {self.version}")
        return found[version]

    def ModelInfer(self, request: Any, context: Any) -> Any:
        with self.lock:
            self.asked.append((request.model_name, context.time_remaining()))
            self.asked_versions.append(request.model_version)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            trouble = self.troubles.pop(0) if self.troubles else None
        try:
            while context.is_active() and not self.gate.wait(0.01):
                pass
            if trouble:
                trouble(context)
            with self.lock:
                predictor, version = self.predictor, self.version
            if request.model_version:
                predictor, version = self._named(request.model_version, context), request.model_version
            answer = self._photo if request.model_name == PHOTO_MODEL else self._tensors
            found = answer(predictor, request, context)
            found.model_version = version or "1"
            return found
        finally:
            with self.lock:
                self.at_once -= 1

    def _tensors(self, predictor: FakePredictor, request: Any, context: Any) -> Any:
        found = {}
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
            dtype = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}[tensor.datatype]
            found[tensor.name] = np.frombuffer(content, dtype).reshape(tensor.shape)
        raw = predictor.predict(NetworkBatch(**found | {"scales": found["scales"][:, 0]}))
        count = raw.segment_count[:, None]
        return response(panoptic=raw.panoptic, segments=raw.segments, segment_count=count)

    def _photo(self, predictor: FakePredictor, request: Any, context: Any) -> Any:
        (content,) = request.raw_input_contents
        assert int.from_bytes(content[:4], "little") == len(content) - 4
        wanted = [output.name for output in request.outputs]
        assert wanted[:3] == ["labels", "photo_sizes", "segments_json"]
        stages = {"stages_json": json.dumps(self.stages).encode()} if wanted[3:] else {}
        try:
            photo = read_photo(content[4:], "photo[0]")
        except InputError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        (result,) = predict_photos(predictor, [photo])
        table = predictor.manifest.categories_table
        segments = [
            {"id": each.id, "category_id": table[each.category].id, "name": table[each.category].name}
            | {"isthing": table[each.category].isthing, "score": each.score, "area": each.area, "box": each.bbox}
            for each in result.segments
        ]
        labels = result.ids.astype(np.uint8)[None]
        sizes = np.array([result.ids.shape], np.int32)
        return response(labels=labels, photo_sizes=sizes, segments_json=json.dumps(segments).encode(), **stages)


def response(**outputs: np.ndarray | bytes) -> Any:
    """An answer of the protocol."""
    tensors, contents = [], []
    for name, value in outputs.items():
        if isinstance(value, bytes):
            tensors.append({"name": name, "datatype": "BYTES", "shape": [1, 1]})
            contents.append(len(value).to_bytes(4, "little") + value)
        else:
            kind = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}[value.dtype.name]
            tensors.append({"name": name, "datatype": kind, "shape": value.shape})
            contents.append(value.tobytes())
    return service_pb2.ModelInferResponse(outputs=tensors, raw_output_contents=contents)


def refusal(status: str, text: str, retry_ms: int | None = None) -> Trouble:
    def trouble(context: Any) -> None:
        if retry_ms is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(retry_ms)),))
        context.abort(grpc.StatusCode[status], text)

    return trouble


@pytest.fixture
def server() -> Iterator[FakeServer]:
    running = FakeServer()
    yield running
    running.stop()
