"""A test inference of every served model: the only health of Triton's that means anything."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from upsnet.contract import MODEL, PHOTO, PHOTO_MODEL, SEGMENTS_JSON

SIDE = 128  # of the image in a test inference
# A photo this narrow becomes a network image of one row of 32 pixels, whatever size the model is made for.
PHOTO_SIZE = (64, 1)
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would go on with the last one's waiting
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
]


class ServerError(Exception):
    """Why a server is no good, in one line."""


class Probe:
    """Asks a server's models. Belongs to one running server; a new one is made for the next."""

    def __init__(self, target: str, models: Sequence[str]) -> None:
        self._requests = [_REQUESTS[model]() for model in models]
        self._channel = grpc.aio.insecure_channel(target, OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ask(self) -> None:
        """Returns when each model has answered, waiting for the server to listen. ServerError where one does not."""
        await asyncio.gather(*(self._ask(request) for request in self._requests))

    async def answers(self) -> int:
        """How many requests the server has answered so far, well or badly. ServerError where it does not say."""
        try:
            found = await self._stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"the Triton server does not answer: {error.details()}") from error
        counts = [model.inference_stats for model in found.model_stats]
        return sum(count.success.count + count.fail.count for count in counts)

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, request: service_pb2.ModelInferRequest) -> None:
        try:
            await self._stub.ModelInfer(request, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            words = " ".join((error.details() or error.code().name).split()).rstrip(".")
            raise ServerError(f"a test inference of {request.model_name} failed: {words}") from error


def _tensors() -> service_pb2.ModelInferRequest:
    arrays: dict[str, tuple[str, np.ndarray]] = {
        "images": ("UINT8", np.zeros((1, SIDE, SIDE, 3), np.uint8)),
        "sizes": ("INT32", np.full((1, 2), SIDE, np.int32)),
        "scales": ("FP32", np.ones((1, 1), np.float32)),
    }
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name, (kind, array) in arrays.items():
        request.inputs.add(name=name, datatype=kind, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    request.outputs.add(name="segment_count")
    return request


def _photo() -> service_pb2.ModelInferRequest:
    stream = io.BytesIO()
    Image.new("RGB", PHOTO_SIZE).save(stream, "png")
    request = service_pb2.ModelInferRequest(model_name=PHOTO_MODEL)
    tensor = request.inputs.add(name=PHOTO, datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(stream.getvalue())
    request.outputs.add(name=SEGMENTS_JSON)
    return request


_REQUESTS = {MODEL: _tensors, PHOTO_MODEL: _photo}
