"""Real photos, official PQ results and golden outputs that live beside the project; absent on most machines.

They are not ours to give away. Where the variable UPSNET_SHARED names them (.ci/run), a test that needs them fails when
it does not find them; elsewhere it skips. tests/test_shared.py holds every test to this one way to them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "UPSNET_SHARED"
FOLDER = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[2] / "shared") / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return find(FOLDER)


def find(folder: Path) -> Path:
    if not folder.is_dir():
        reason = f"needs the shared data: no {folder}; {VARIABLE} names another place"
        pytest.fail(reason) if os.environ.get(VARIABLE) else pytest.skip(reason)
    return folder


def shared_names(folder: str) -> list[str]:
    """What is in a folder of the shared data, to parametrize a test with that has `shared_data`; never nothing."""
    return sorted(path.name for path in (FOLDER / folder).glob("*")) or [f"(no {folder})"]
