"""A web server on 127.0.0.1 with one file, which behaves as badly as it is told."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(17).bytes(3_000_000)


@dataclass
class Files:
    """What the server has, and how it gives it."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)  # of the first answers, in place of the file
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    headers: dict[str, str] = field(default_factory=dict)  # of those other answers
    silence: float = 0.0  # seconds before the first piece
    pause: float = 0.0  # after each piece
    lengthless: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(files: Files, tls: ssl.SSLContext | None = None) -> Iterator[Files]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a connection for each answer: its end is an end

        def do_GET(self) -> None:
            files.asked.append(dict(self.headers))
            files.paths.append(self.path)
            if files.statuses:
                self.send_response(files.statuses.pop(0))
                for name, value in files.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                return
            start = self._start()
            if start is not None and start >= len(files.content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(200 if start is None else 206)
            if files.etag:
                self.send_header("ETag", files.etag)
            if start is not None:
                self.send_header("Content-Range", f"bytes {start}-{len(files.content) - 1}/{len(files.content)}")
            body = files.content[start or 0 :]
            if not files.lengthless:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            most = files.cuts.pop(0) if files.cuts else len(body)
            time.sleep(files.silence)
            try:
                for place in range(0, min(most, len(body)), 100_000):
                    self.wfile.write(body[place : min(place + 100_000, most)])
                    time.sleep(files.pause)
            except OSError:  # the caller has gone
                pass

        def _start(self) -> int | None:
            """The first byte that is asked for; None: all of them."""
            wanted = self.headers.get("Range")
            if not files.ranges or wanted is None or self.headers.get("If-Range", files.etag) != files.etag:
                return None
            return int(wanted.removeprefix("bytes=").partition("-")[0])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    files.address = f"http{'s' * (tls is not None)}://127.0.0.1:{server.server_port}/model_final_abc123.pkl"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
