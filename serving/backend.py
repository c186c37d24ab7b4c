"""What the front knows of the Triton servers behind it, one for each version; the fleet provides it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from serving.limits import Limits


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


class Role(StrEnum):
    """Of a version that runs."""

    SERVING = "serving"  # callers that name no version have this one
    CANDIDATE = "candidate"  # staged; only callers that name it reach it
    STANDBY = "standby"  # it served before, and is kept for a while: a rollback need not start it


class Backend(Protocol):
    """The Triton server of one version. It listens on sockets in a folder that only this user can enter."""

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


class Member(NamedTuple):
    """A version of the fleet, and what runs it. One and the same for as long as its server is kept."""

    version: int
    role: Role
    backend: Backend
    limits: Limits


class Fleet(Protocol):
    """The versions that run now, in the order of their numbers. What serves changes between two calls of `serving`."""

    @property
    def serving(self) -> Member:
        """The version in service: there always is one, whatever happens to the others."""
        ...

    @property
    def members(self) -> Mapping[int, Member]:
        """By version. A member that has gone from here is ended when its requests under way have been answered."""
        ...

    @property
    def failed(self) -> Mapping[int, str]:
        """Versions that should run and do not: why, in one line."""
        ...

    @property
    def rollouts(self) -> str:
        """The id of the repository's record; empty where its versions are not rolled out step by step."""
        ...
