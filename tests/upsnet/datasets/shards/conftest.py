"""A small data set in shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from upsnet.datasets.shards.write import write_shards
from upsnet.datasets.split import Split

SIZE = 100_000  # bytes of a shard


@pytest.fixture(scope="session")
def shards(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (24 images) and val (60)."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("train", "val"):
        write_shards(Split.usual(shapes_folder / f"{name}.json"), str(folder), SIZE, workers=1, progress=False)
    return folder
