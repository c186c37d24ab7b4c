"""The mark of a data set that was made here, in its JSON's `info`: what --replace may remove, and where it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upsnet.files import read_json

MAKER = "upsnet data"


def info_if_ours(json_file: Path) -> dict[str, Any] | None:
    """`info` of a data set that a command of `upsnet data` wrote; None for any other."""
    content = read_json(json_file)
    info = content.get("info") if isinstance(content, dict) else None
    return info if isinstance(info, dict) and info.get("maker") == MAKER else None


def origin(json_file: Path) -> str | None:
    """The name of the JSON that this one was split from, if it was made here."""
    name = (info_if_ours(json_file) or {}).get("split_of")
    return name if isinstance(name, str) else None
