"""Data sets that lie in folders, as those of most tests do: their files are paths, never pieces of shards."""

from __future__ import annotations

from pathlib import Path

from upsnet.datasets.doctor.json_file import find_splits, in_folders
from upsnet.datasets.places import File
from upsnet.datasets.split import Split


def local(file: File | str) -> Path:
    assert isinstance(file, Path)
    return file


def find_folders(folder: Path) -> list[Split]:
    return list(map(in_folders, find_splits(folder)))
