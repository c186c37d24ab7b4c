"""The access log: one JSON line a request, without photos, paths or line breaks of a caller's making."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path

from serving.record import Outcome, Record
from upsnet.errors import InputError
from upsnet.files import WriteError, writing

STDERR = Path("-")
MOST_WAITING = 10_000  # lines; a disk that does not take them keeps no request waiting
CLOSE_SECONDS = 1.0
LONGEST = 500  # characters of a text in a line
LEVELS = {Outcome.OK: logging.INFO, Outcome.UNAVAILABLE: logging.ERROR, Outcome.FAILED: logging.ERROR}  # else WARNING


class AccessLog:
    """Writes the lines in a thread of its own.

    path is a file, which is opened anew when it was moved away (logrotate), or `-` for stderr. Without one, the
    requests that failed by the server's fault go to stderr. InputError where the file cannot be written; `lose` is
    called for a line that cannot be written later (a full disk), and the service goes on.
    """

    def __init__(self, path: Path | None, lose: Callable[[], None]) -> None:
        self._handler = _handler(path)
        self._level = logging.ERROR if path is None else logging.INFO
        lines: queue.Queue[logging.LogRecord] = queue.Queue(MOST_WAITING)
        self._door = QueueHandler(lines)
        for each in (self._handler, self._door):
            each.handleError = lambda record: lose()  # type: ignore[method-assign]  # else a traceback for each
        self._writer = QueueListener(lines, self._handler)
        self._writer.start()

    def write(self, record: Record, trace_id: str | None) -> None:
        level = LEVELS.get(record.outcome, logging.WARNING)
        if level >= self._level:
            text = line(record, level, trace_id)
            self._door.handle(logging.LogRecord("upsnet.access", level, "", 0, text, None, None))

    def close(self) -> None:
        """Writes what waits, for CLOSE_SECONDS at most: nobody may be reading the other end of a pipe."""
        closer = threading.Thread(target=self._finish, daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)

    def _finish(self) -> None:
        with suppress(OSError, queue.Full):  # lines that are lost were counted
            self._writer.stop()
            self._handler.close()


class _File(WatchedFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it was moved away, and there is none to be opened in its place
            self.handleError(record)


def _handler(path: Path | None) -> logging.Handler:
    if path is None or path == STDERR:
        return logging.StreamHandler(sys.stderr)
    cure = "give --access-log another file, or - for stderr"
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_fifo():  # without a reader this is an error, where to open it otherwise would wait for one
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            return _File(path, encoding="utf-8")
    except WriteError as error:
        raise InputError(f"{error}; {cure}") from error


def line(record: Record, level: int, trace_id: str | None) -> str:
    """A JSON object in ASCII."""
    content = {
        "time": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
        "request_id": record.request_id[:LONGEST],
        "protocol": record.protocol,
        "method": record.method[:LONGEST],
        "model": record.model[:LONGEST],
        "model_version": record.version,
        "outcome": record.outcome,
        "message": record.message[:LONGEST],
        "queued_ms": round(record.queued * 1e3, 3),
        "served_ms": round(record.served * 1e3, 3),
        "total_ms": round(record.total * 1e3, 3),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "photos": record.photos,
        "pixels": record.pixels,
        "trace_id": trace_id,
    }
    return json.dumps(content)
