"""Where the front listens, and what it lets in."""

from __future__ import annotations

from typing import NamedTuple

from serving.front.tls import Tls
from serving.limits import Limits


class FrontSettings(NamedTuple):
    """Ports of 0 are picked free."""

    host: str
    grpc_port: int
    http_port: int | None  # of Triton's REST; None: closed
    metrics_port: int  # of /health and /metrics
    limits: Limits
    tls: Tls | None = None
