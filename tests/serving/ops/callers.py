"""Callers of a Triton server who ask without a pause, and never ask twice."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from PIL import Image

from upsnet.contract import MODEL, PHOTO_MODEL


@contextmanager
def beside(*asks: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each runs in a thread of its own for as long as the `with` lasts; then the event that it is given is set."""
    end = threading.Event()
    threads = [threading.Thread(target=ask, args=(end,)) for ask in asks]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        end.set()
        for each in threads:
            each.join()


class Callers:
    """Two of each model, who ask without a pause for as long as the `with` lasts, and never ask twice."""

    def __init__(self, address: str) -> None:
        self.address, self.end = address, threading.Event()
        self.failed: list[str] = []
        self.seen: list[list[tuple[str, str, float]]] = []  # of each caller: model, version, a figure of the answer
        asking = (self.ask_tensors, self.ask_photo) * 2
        self.threads = [threading.Thread(target=self.ask, args=(ask,)) for ask in asking]

    def __enter__(self) -> Callers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join()

    def go_on(self) -> None:
        """Until everybody has had two more answers: the second was asked for after this began."""
        wanted = [len(seen) + 2 for seen in self.seen]
        while not self.failed and any(len(seen) < count for seen, count in zip(self.seen, wanted, strict=True)):
            time.sleep(0.01)

    def ask(self, ask: Any) -> None:
        seen: list[tuple[str, str, float]] = []
        self.seen.append(seen)
        with grpc.InferenceServerClient(self.address) as client:
            while not self.end.is_set():
                try:
                    seen.append(ask(client))
                except Exception as error:
                    self.failed.append(f"{ask.__name__}: {error}")

    def ask_tensors(self, client: grpc.InferenceServerClient) -> tuple[str, str, float]:
        images, sizes = np.full((1, 64, 96, 3), 200, np.uint8), np.array([[64, 96]], np.int32)
        inputs = {"images": images, "sizes": sizes, "scales": np.ones((1, 1), np.float32)}
        answer = client.infer(MODEL, [_input(name, array) for name, array in inputs.items()])
        return MODEL, answer.get_response().model_version, answer.as_numpy("segments")[0, 0, 1]

    def ask_photo(self, client: grpc.InferenceServerClient) -> tuple[str, str, float]:
        stream = io.BytesIO()
        Image.new("RGB", (96, 64), (200, 200, 200)).save(stream, "PNG")
        photo = _input("photo", np.array([[stream.getvalue()]], object))
        answer = client.infer(PHOTO_MODEL, [photo], outputs=[grpc.InferRequestedOutput("segments_json")])
        (segment, *_) = json.loads(answer.as_numpy("segments_json")[0, 0])
        return PHOTO_MODEL, answer.get_response().model_version, segment["score"]


def _input(name: str, array: Any) -> grpc.InferInput:
    kind = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "object": "BYTES"}[array.dtype.name]
    tensor = grpc.InferInput(name, array.shape, kind)
    tensor.set_data_from_numpy(array)
    return tensor
