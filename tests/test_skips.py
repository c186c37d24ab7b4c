"""The summary of what was skipped, in a run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.parametrize("n", range(11))
def test_front(n):
    pytest.skip("no NVIDIA GPU")

@pytest.mark.skipif(True, reason="needs PyAV")
def test_video():
    pass

def test_broken():
    assert False

def test_sound():
    pass
"""


@pytest.mark.parametrize(
    ("chosen", "last"),
    [
        ("front or video", ["12 skipped:", "  11 no NVIDIA GPU", "   1 needs PyAV", "= 12 skipped, 2 deselected in"]),
        ("video or broken", ["FAILED", "1 skipped:", "  1 needs PyAV", "= 1 failed, 1 skipped, 12 deselected in"]),
        ("sound", ["test_made.py", "", "= 1 passed, 13 deselected in"]),
    ],
)
def test_skips_are_counted_by_their_reasons(chosen: str, last: list[str], tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "test_made.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += [f"--rootdir={tmp_path}", "-k", chosen, str(tmp_path)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    found = done.stdout.splitlines()[-len(last) :]
    assert all(text in line for text, line in zip(last, found, strict=True)), done.stdout
