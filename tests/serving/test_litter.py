"""What Triton leaves in /tmp where it is killed, and whose it is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.environment import Environment
from serving.scratch import Scratch
from serving.triton_process import TritonProcess


@pytest.fixture
def process(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonProcess]:
    """One that has never been launched."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(
        "serving.triton_process.litter", lambda: {each for each in (tmp_path / "tmp").iterdir() if each.is_dir()}
    )
    with Scratch() as scratch:
        yield TritonProcess(Environment(tmp_path, tmp_path, tmp_path, "3.11"), repository, scratch)


def leave(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "tmp" / name
    folder.mkdir()
    return folder


def test_what_a_killed_server_has_left(process: TritonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_neighbours", lambda: [time.time() - 3600])
    mine, full = leave(tmp_path, "mine"), leave(tmp_path, "full")
    (full / "file").touch()
    process._litter = {mine, full, tmp_path / "gone"}
    process._sweep()
    assert not mine.exists() and full.exists()


def test_what_may_be_anothers_stays(process: TritonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_neighbours", lambda: [time.time() - 1])
    theirs = leave(tmp_path, "theirs")
    process._litter = {theirs}
    process._sweep()
    assert theirs.exists()


def test_neighbours(process: TritonProcess, tmp_path: Path) -> None:
    """When they began, by the clock of the files."""
    program = tmp_path / "tritonserver"
    program.symlink_to("/bin/sleep")
    before = len(process._neighbours())
    with subprocess.Popen([str(program), "60"]) as other:
        try:
            end = time.monotonic() + 10
            while len(begun := process._neighbours()) <= before:
                assert time.monotonic() < end
            assert min(abs(each - time.time()) for each in begun) < 20
        finally:
            os.kill(other.pid, 9)
