"""Where CI names the shared data, no test that needs them is skipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import shared


def test_a_skip_becomes_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shared.VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs the shared data"):
        shared.find(tmp_path / "absent")
    monkeypatch.setenv(shared.VARIABLE, str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="needs the shared data"):
        shared.find(tmp_path / "absent")


def test_there_is_one_way_to_them(project_root: Path) -> None:
    """A test that looked for the folder by itself could skip in silence."""
    looking = re.compile(rf"{shared.VARIABLE}|[\"'/]shared[\"'/]")
    found = {path.name for path in (project_root / "tests").rglob("*.py") if looking.search(path.read_text())}
    assert found == {"shared.py", "test_client.py"}  # the latter hands the variable on
