"""S3 by moto on 127.0.0.1, in a process of its own, with faults to order: python tests/bucket_server.py

Prints its port. PUT /-/faults with a JSON list of Fault's fields orders them, GET /-/seen tells the requests that came.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Answer = Iterable[bytes]
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>"


@dataclass
class Fault:
    """What happens to every n-th request that fits, beginning with the first, `times` times (0: for ever).

    kind: "busy" (503 SlowDown), "broken" (500 without a body), "refused" (403 with `code`), "cut" (half of the body,
    then the end), "reset" (the connection ends before any answer) or "slow" (`seconds` before the answer).
    """

    kind: str
    every: int = 1
    times: int = 0
    method: str = ""
    path: str = ""  # a regular expression
    code: str = "AccessDenied"
    seconds: float = 1.0
    seen: int = 0

    def hits(self, method: str, path: str) -> bool:
        if (self.method and self.method != method) or not re.search(self.path, path):
            return False
        self.seen += 1
        number, rest = divmod(self.seen - 1, self.every)
        return rest == 0 and (not self.times or number < self.times)


class Faulty:
    """moto's application behind the faults."""

    def __init__(self, application: Callable[..., Answer]) -> None:
        self.application = application
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith("/-/"):
            return self.order(environ, start, path)
        with self.lock:
            self.seen.append(f"{method} {path} {environ.get('HTTP_RANGE', '')}".strip())
            fault = next((each for each in self.faults if each.hits(method, path)), None)
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if fault and kind in ("busy", "broken", "refused"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = {"busy": ("503 Slow Down", "SlowDown"), "broken": ("500 Error", "")}.get(
                kind, ("403 Forbidden", fault.code)
            )
            body = ERROR.format(code=code, words="Please reduce your request rate.") if code else ""
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body.encode()]
        answer = self.application(environ, start)
        if kind != "cut":
            return answer
        whole = b"".join(answer)
        return [whole[: len(whole) // 2]]  # of the length that the header says

    def order(self, environ: dict[str, Any], start: Callable[..., Any], path: str) -> Answer:
        with self.lock:
            if environ["REQUEST_METHOD"] == "PUT":
                content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                self.faults, self.seen = [Fault(**each) for each in json.loads(content)], []
            body = json.dumps(self.seen).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None:
            pass

    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    main()
