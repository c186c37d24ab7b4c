"""What the front knows of the Triton server behind it; the supervisor provides it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol


class State(StrEnum):
    """Of the service as a whole, as /health tells it."""

    STARTING = "starting"  # no model has answered yet; requests wait
    READY = "ready"
    DEGRADED = "degraded"  # the server is being restarted, or answers with errors; requests wait
    DRAINING = "draining"  # accepted requests are answered, new ones are refused
    STOPPED = "stopped"


class Health(NamedTuple):
    """The truth about the service at one moment."""

    state: State
    reasons: tuple[str, ...]  # why it is not ready, one line each; empty where it is
    since: float  # seconds since the epoch at which this state began
    restarts: int  # of the server, since the service started
    model_sha256: str  # of the ONNX file that is served
    memory: dict[str, int]  # resident bytes of each process: "server", "upsnet", "upsnet_photo", ...


class Backend(Protocol):
    """The Triton server behind the front. It listens on sockets in a folder that only this user can enter."""

    grpc_target: str  # of gRPC: "unix:/…"; the same after a restart
    http_socket: Path  # of Triton's HTTP
    metrics_socket: Path  # of Triton's metrics (HTTP)

    @property
    def health(self) -> Health: ...

    async def wait_until_ready(self) -> None:
        """Returns when requests can be sent. While the server restarts this waits; callers bound it themselves."""
        ...

    def suspect(self, reason: str) -> None:
        """The front saw an answer that a dead or broken server gives: look at it now. Returns at once."""
        ...
