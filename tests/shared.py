"""Real photos, official PQ results and golden outputs that live beside the project; absent on most machines.

Where they are named by the variable UPSNET_SHARED (.ci/run), a test that needs them fails when it does not find them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "UPSNET_SHARED"
FOLDER = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[2] / "shared") / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not FOLDER.is_dir():
        reason = f"needs the shared data: no {FOLDER}; {VARIABLE} names another place"
        pytest.fail(reason) if os.environ.get(VARIABLE) else pytest.skip(reason)
    return FOLDER


def shared_names(folder: str) -> list[str]:
    """What is in a folder of the shared data, to parametrize a test with that has `shared_data`; never nothing."""
    return sorted(path.name for path in (FOLDER / folder).glob("*")) or [f"(no {folder})"]
