"""What is known of a request when it has ended: metrics, log lines and traces are made of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry


class Outcome(StrEnum):
    """How a request ended. Everything but OK is a refusal or a failure, and is counted by this name."""

    OK = "ok"
    INVALID = "invalid"  # the request itself is wrong: the model says so, or its message cannot be read
    TOO_LARGE = "too_large"  # more bytes or pixels than are allowed
    BUSY = "busy"  # the queue is full
    DEADLINE = "deadline"  # the caller's time was over before there was an answer
    CANCELLED = "cancelled"  # the caller has gone
    FORBIDDEN = "forbidden"  # a call that nobody may make from outside
    UNAVAILABLE = "unavailable"  # no server behind the front, or it stops
    FAILED = "failed"  # the server's or the model's fault


@dataclass
class Record:
    """One request, filled while it is handled. Times in seconds."""

    protocol: Literal["grpc", "http"]
    method: str  # ModelInfer, ModelConfig, ...
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # the caller's own where it gives one
    traceparent: str | None = None  # W3C trace context of the caller
    model: str = ""
    version: str = ""  # of the model, whose server was asked; empty where none was
    photos: int = 0  # images in the request
    pixels: int = 0  # B x H x W of a tensor request, height x width of the photos as far as they are known
    bytes_in: int = 0
    bytes_out: int = 0
    started: float = field(default_factory=time.time)  # since the epoch
    queued: float = 0.0  # waiting for its turn
    served: float = 0.0  # with Triton
    total: float = 0.0
    outcome: Outcome = Outcome.OK
    message: str = ""  # what the caller was told, where the outcome is not OK


class Telemetry(Protocol):
    """Whoever counts, logs and traces."""

    registry: CollectorRegistry  # of the metrics: /metrics tells what is in it

    def finish(self, record: Record) -> None:
        """Called once for each request, when it has ended."""
        ...

    def close(self) -> None:
        """Writes what is still on its way to the log and the traces; called once, after the last request."""
        ...
