"""`upsnet.datasets`: every name is there, and costs nothing before it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from upsnet import datasets
from upsnet.command_line.main import COMMANDS


def test_every_name_is_there_and_says_what_it_does() -> None:
    for name in datasets.__all__:
        assert getattr(datasets, name).__doc__ and name in dir(datasets)
    with pytest.raises(AttributeError, match=r"module 'upsnet\.datasets' has no attribute 'voc'"):
        datasets.voc  # noqa: B018


def test_every_converter_has_its_reader_here_and_where_they_are_listed(project_root: Path) -> None:
    commands = [name.removeprefix("data from-") for name in COMMANDS if name.startswith("data from-")]
    readers = {f"read_{name}" for name in commands}
    assert len(readers) > 1 and readers | {"read_panoptic_png"} == {
        name for name in datasets.__all__ if name.startswith("read_")
    }
    page = (project_root / "docs" / "python.md").read_text()
    assert {name for name in readers if name not in page} == set()


def test_its_docstring_has_every_name() -> None:
    table = set(re.findall(r"`(\w+)`", datasets.__doc__ or ""))
    assert set(datasets.__all__) - table == set()


def test_importing_it_loads_nothing_heavy(project_root: Path) -> None:
    code = "import sys, upsnet.datasets; print(sorted({'numpy', 'PIL', 'pydantic', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_of_its_docstring(tmp_path: Path) -> None:
    folder = datasets.write_shapes(tmp_path / "shapes", {"train": 2, "val": 2}, progress=False)
    val = datasets.PanopticFolder(folder / "val.json")
    record = val.records[0]
    photo, ids = val.read(record)
    assert photo.shape[:2] == ids.shape == record.size
    assert set(np.unique(ids)) - {0} == {segment.id for segment in record.segments}
    (checkup,) = [datasets.check_split(split, 1, progress=False) for split in datasets.find_splits(folder)][1:]
    assert checkup.tally.errors == 0 and checkup.tally.images == 2
