"""A server that speaks Triton's protocol and has no network behind it: what it answers is up to the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import grpc
import numpy as np
from tritonclient.grpc.service_pb2 import (
    ModelConfigRequest,
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
)
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from tests.conftest import FakePredictor
from upsnet.contract import METADATA_KEY, PHOTO_MODEL

Infer = Callable[[int, ModelInferRequest, grpc.ServicerContext], dict[str, bytes]]  # the first: how many came before


class FakeTriton(GRPCInferenceServiceServicer):
    """Describes itself as any server of this project does."""

    def __init__(self, infer: Infer) -> None:
        self._infer, self._asked = infer, 0

    def ModelConfig(self, request: ModelConfigRequest, context: grpc.ServicerContext) -> ModelConfigResponse:
        if request.name != PHOTO_MODEL:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no model {request.name}")
        response = ModelConfigResponse()
        response.config.parameters[METADATA_KEY].string_value = FakePredictor("x").manifest.model_dump_json()
        return response

    def ModelInfer(self, request: ModelInferRequest, context: grpc.ServicerContext) -> ModelInferResponse:
        number, self._asked = self._asked, self._asked + 1  # one thread alone serves
        response = ModelInferResponse(model_name=request.model_name)
        for name, content in self._infer(number, request, context).items():
            response.outputs.add(name=name, datatype="UINT8", shape=[len(content)])
            response.raw_output_contents.append(content)
        return response


def echo(_: int, request: ModelInferRequest, __: grpc.ServicerContext) -> dict[str, bytes]:
    """An answer that depends on the photo."""
    photo = np.frombuffer(request.raw_input_contents[0], np.uint8)
    return {"labels": photo[::-1].tobytes(), "photo_sizes": b"12345678"}


@contextmanager
def fake_server(infer: Infer = echo, tls: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """Yields its address."""
    server = grpc.server(ThreadPoolExecutor(1))
    add_GRPCInferenceServiceServicer_to_server(FakeTriton(infer), server)
    place = "127.0.0.1:0"
    port = server.add_insecure_port(place) if tls is None else server.add_secure_port(place, tls)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def fake_metrics(pages: Sequence[str]) -> Iterator[str]:
    """An HTTP server that shows one page after the other; yields its address."""
    rest = iter(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(next(rest).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
