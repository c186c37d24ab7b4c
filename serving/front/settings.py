"""Where the front listens, and what it lets in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from serving.front.tls import Tls
from serving.limits import Limits


class FrontSettings(NamedTuple):
    """Ports of 0 are picked free."""

    host: str
    grpc_port: int
    http_port: int | None  # of Triton's REST; None: closed
    metrics_port: int  # of /health and /metrics
    limits: Limits  # of the ports, before it is known which version is asked: that has limits of its own, too
    folder: Path  # that only this user can enter, for as long as the service lives
    tls: Tls | None = None
