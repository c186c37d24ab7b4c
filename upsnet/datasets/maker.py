"""The mark of a data set that was made here, in its JSON's `info`: what --replace may remove, and where it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upsnet.datasets.doctor.json_file import unlisted
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.files import read_json

MAKER = "upsnet data"
REPORT = "_conversion.json"  # after a split's name: what a conversion says of itself


def info_if_ours(json_file: Path) -> dict[str, Any] | None:
    """`info` of a data set that a command of `upsnet data` wrote; None for any other."""
    content = read_json(json_file)
    info = content.get("info") if isinstance(content, dict) else None
    return info if isinstance(info, dict) and info.get("maker") == MAKER else None


def origin(json_file: Path) -> str | None:
    """The name of the JSON that this one was split from, if it was made here."""
    name = (info_if_ours(json_file) or {}).get("split_of")
    return name if isinstance(name, str) else None


def check_only_listed(split: Split) -> None:
    """InputError where the folders of a split that is to be replaced hold a file that its JSON does not list."""
    content = read_json(split.json_file)
    for kind, folder, key in (("photo", split.images, "images"), ("png", split.segments, "annotations")):
        entries = content.get(key) if isinstance(content, dict) else None
        named = [each for each in entries or () if isinstance(each, dict) and isinstance(each.get("file_name"), str)]
        found = unlisted(f"{kind}-unlisted", folder, named)
        if other := next(iter(found), None):
            raise InputError(f"{other.text}: --replace would remove this file, which is not of the data set; move it")
