"""The front before the real server, asked by clients that are not ours."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.shared_memory import PLACE, TOKEN
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
OUTPUTS = ("panoptic", "segments", "segment_count")


def inputs_of(batch: NetworkBatch) -> list[Any]:
    inputs = []
    for name, array in (("images", batch.images), ("sizes", batch.sizes), ("scales", batch.scales[:, None])):
        kind = {"images": "UINT8", "sizes": "INT32", "scales": "FP32"}[name]
        inputs.append(triton.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    return inputs


@pytest.fixture
def client(server: TritonServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url) as made:
        yield made


CLOSED: dict[str, Callable[[Any], object]] = {
    "RepositoryIndex": lambda client: client.get_model_repository_index(),
    "RepositoryModelLoad": lambda client: client.load_model(
        "evil", config='{"backend": "python"}', files={"file:1/model.py": b"raise SystemExit"}
    ),
    "RepositoryModelUnload": lambda client: client.unload_model("upsnet"),
    "SystemSharedMemoryStatus": lambda client: client.get_system_shared_memory_status(),
    "SystemSharedMemoryRegister": lambda client: client.register_system_shared_memory("a", "/others", 8),
    "SystemSharedMemoryUnregister": lambda client: client.unregister_system_shared_memory(),
    "CudaSharedMemoryStatus": lambda client: client.get_cuda_shared_memory_status(),
    "CudaSharedMemoryRegister": lambda client: client.register_cuda_shared_memory("a", b"AAAA", 0, 8),
    "CudaSharedMemoryUnregister": lambda client: client.unregister_cuda_shared_memory(),
    "TraceSetting": lambda client: client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"}),
    "LogSettings": lambda client: client.update_log_settings({"log_file": "/tmp/never"}),
}


@pytest.mark.parametrize("name", CLOSED)
def test_nobody_manages_the_server_from_outside(client: Any, name: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        CLOSED[name](client)
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    assert caught.value.message() == f"{name} is closed on this server"
    assert client.is_model_ready("upsnet")


def test_what_anybody_may_ask(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert not client.is_model_ready("other")
    metadata = client.get_server_metadata()
    assert "model_configuration" in metadata.extensions
    assert not {"model_repository", "logging", "trace", "system_shared_memory"} & set(metadata.extensions)
    assert [each.name for each in client.get_model_metadata("upsnet").outputs] == list(OUTPUTS)
    assert client.get_model_config("upsnet").config.name == "upsnet"
    assert client.get_inference_statistics("upsnet").model_stats[0].name == "upsnet"


def test_refusals_are_one_line_of_the_front_or_of_the_model(client: Any) -> None:
    batch = make_request(1, 64, 64)
    for changed, told in (
        (make_request(1, 64, 65), "images are 64 x 65: height and width must be non-zero multiples of 32"),
        (make_request(1, 4096, 4096), "images are 1 x 4096 x 4096: more than 4194304 pixels"),
        (batch._replace(scales=np.array([-1], np.float32)), "scales[0] is -1.0: not a positive number"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("upsnet", inputs_of(changed))
        assert (caught.value.status(), caught.value.message()) == ("StatusCode.INVALID_ARGUMENT", told)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("other", inputs_of(batch))
    assert "other" in caught.value.message() and "/" not in caught.value.message()


def test_a_stream_of_the_asyncio_client(server: TritonServer, exported: Exported) -> None:
    batches = [make_request(1, 32, 32 * (1 + each)) for each in range(3)]

    async def main() -> list[Any]:
        async def messages() -> AsyncIterator[dict[str, Any]]:
            for each, batch in enumerate(batches):
                yield {"model_name": "upsnet", "inputs": inputs_of(batch), "request_id": str(each)}

        async with triton_aio.InferenceServerClient(server.url) as client:
            return [each async for each in client.stream_infer(messages())]

    answers = asyncio.run(main())
    for number, ((result, error), batch) in enumerate(zip(answers, batches, strict=True)):
        assert error is None and result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("panoptic"), exported.predict(batch).panoptic)


class Shared:
    """One region with a request's images, and room for the panoptic maps after them."""

    def __init__(self, batch: NetworkBatch) -> None:
        self.batch, self.name = batch, secrets.token_hex(16)
        self.key = f"/upsnet-client-{self.name}"
        self.path = Path("/dev/shm") / self.key[1:]
        pixels = batch.images.size // 3
        self.sizes = {"images": 3 * pixels, "panoptic": pixels}
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(batch.images.tobytes() + bytes(pixels))

    def register(self, stub: Any, token: tuple[tuple[str, str], ...]) -> None:
        request = pb.SystemSharedMemoryRegisterRequest(name=self.name, key=self.key, byte_size=sum(self.sizes.values()))
        stub.SystemSharedMemoryRegister(request, metadata=token)

    def unregister(self, stub: Any, token: tuple[tuple[str, str], ...]) -> None:
        stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=self.name), metadata=token)

    def infer(self, client: Any, token: tuple[tuple[str, str], ...]) -> np.ndarray:
        """The panoptic maps, as they stand in the region."""
        inputs = inputs_of(self.batch)
        inputs[0].set_shared_memory(self.name, self.sizes["images"])
        outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS]
        outputs[0].set_shared_memory(self.name, self.sizes["panoptic"], self.sizes["images"])
        client.infer("upsnet", inputs, outputs=outputs, client_timeout=30, headers=dict(token))
        answer = np.fromfile(self.path, np.uint8, offset=self.sizes["images"])
        return answer.reshape(self.batch.images.shape[:3])


def token_of(stub: Any) -> tuple[tuple[str, str], ...]:
    _, call = stub.ServerMetadata.with_call(pb.ServerMetadataRequest())
    return ((TOKEN, Path(dict(call.initial_metadata())[PLACE]).read_text()),)


@pytest.fixture
def shared() -> Iterator[Shared]:
    made = Shared(make_request(2, 64, 96))
    yield made
    made.path.unlink(missing_ok=True)


def test_shared_memory_in_and_out(server: TritonServer, client: Any, exported: Exported, shared: Shared) -> None:
    expected = exported.predict(shared.batch).panoptic
    assert expected.any()
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        token = token_of(stub)
        for _ in range(20):  # a region is free as soon as the answer is there
            shared.register(stub, token)
            np.testing.assert_array_equal(shared.infer(client, token), expected)
            shared.unregister(stub, token)


def test_faults_in_shared_memory_are_the_callers(server: TritonServer, client: Any, shared: Shared) -> None:
    """Room that is too small for an output, and a region that has become shorter, which would end Triton."""
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        token = token_of(stub)
        shared.register(stub, token)
        whole = shared.sizes["panoptic"]
        shared.sizes["panoptic"] = 4
        with pytest.raises(InferenceServerException) as caught:
            shared.infer(client, token)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value.message()
        assert "bytes to hold the results" in caught.value.message() and shared.name not in caught.value.message()
        shared.sizes["panoptic"] = whole
        os.truncate(shared.path, 0)
        with pytest.raises(InferenceServerException, match="a region has become shorter"):
            shared.infer(client, token)
        shared.unregister(stub, token)
        assert server.state["restarts"] == 0 and client.is_server_ready()


def test_requests_wait_for_a_restart_and_regions_are_registered_again(
    exported: Exported, repository: Path, triton_environment: Path, shared: Shared
) -> None:
    expected = exported.predict(shared.batch).panoptic
    with (
        TritonServer(repository, environment=triton_environment) as server,
        grpc.insecure_channel(server.url) as channel,
        triton.InferenceServerClient(server.url) as client,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        token = token_of(stub)
        shared.register(stub, token)
        np.testing.assert_array_equal(shared.infer(client, token), expected)
        predictor = TritonPredictor(server.url, shared_memory=True)
        np.testing.assert_array_equal(predictor.predict(shared.batch).panoptic, expected)
        (before,) = predictor.connection.regions._free
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while server.state["state"] == "ready" and not server.state["restarts"] and time.monotonic() < deadline:
            time.sleep(0.01)  # until it is noticed: a request that is sent before fails, and this one waits
        shared.path.write_bytes(shared.batch.images.tobytes() + bytes(shared.sizes["panoptic"]))
        np.testing.assert_array_equal(shared.infer(client, token), expected)
        assert server.state["restarts"] == 1
        shared.unregister(stub, token)
        for _ in range(2):  # ours has no name any more: the first goes as a message
            np.testing.assert_array_equal(predictor.predict(shared.batch).panoptic, expected)
        (after,) = predictor.connection.regions._free
        assert after is not before
        predictor.close()
