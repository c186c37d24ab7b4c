"""The viewer's server on a free port, in this process, and a client that says exactly what it is told to."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="needs the extra viewer")

from upsnet.viewer.album import Album
from upsnet.viewer.app import make_app
from upsnet.viewer.command import listen, make_server
from upsnet.viewer.models import Answering, Model, Models

NOTHING: Mapping[str, str] = {}


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    def __init__(self, port: int, album: Album) -> None:
        self.port, self.album = port, album

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = NOTHING) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def give(self, content: bytes, name: str = "photo.png") -> Any:
        reply = self.ask("POST", f"/api/photos?name={name}", content)
        assert reply.status == 201, reply.body
        return reply.json()

    def answer(self, photo: Mapping[str, Any], model: str) -> Any:
        reply = self.ask("POST", f"/api/photos/{photo['id']}/answers?model={model}")
        assert reply.status == 200, reply.body
        return reply.json()


@contextmanager
def running(models: Sequence[Model], servers: Sequence[Answering] = (), album: Album | None = None) -> Iterator[Page]:
    album = album or Album()
    everything = Models(servers, models)
    server = make_server(make_app(everything, album))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Page(listener.getsockname()[1], album)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        everything.close()


def unpacked(packed: Mapping[str, Any]) -> np.ndarray:
    """A map as the page unpacks it."""
    content = zlib.decompress(b64decode(packed["deflated"]))
    return np.frombuffer(content, np.uint8).reshape(packed["height"], packed["width"])


def encoded(photo: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, kind, **options)
    return buffer.getvalue()
