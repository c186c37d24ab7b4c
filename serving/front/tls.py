"""TLS from files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Tls(NamedTuple):
    """PEM files: a certificate with its chain, its key, and the authority whose clients are let in (None: all are)."""

    cert: Path
    key: Path
    client_ca: Path | None = None
