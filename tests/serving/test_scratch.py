"""The folder of a server: where it may lie, and that nothing of it stays, however its owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from serving.processes import arguments
from serving.scratch import SHARED_MEMORY, Scratch, safe_base
from upsnet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import subprocess, sys
from serving.scratch import Scratch
scratch = Scratch()
sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
scratch.guard(sleeper.pid)
open(f"/dev/shm/{scratch.prefix}region", "w").close()
print(scratch.folder, sleeper.pid, flush=True)
sys.stdin.read()
"""


def test_nobody_else_enters_and_nothing_stays() -> None:
    with Scratch() as scratch:
        assert scratch.folder.stat().st_mode & 0o777 == 0o700
        (scratch.folder / "repository").mkdir()
        region = SHARED_MEMORY / f"{scratch.prefix}1"
        region.touch()
        scratch.remove_regions()
        assert not region.exists()
        region.touch()
    assert not scratch.folder.exists() and not region.exists()


def test_a_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", OWNER]
    with subprocess.Popen(
        command, env={"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder, _, sleeper = owner.stdout.readline().strip().rpartition(" ")
        assert Path(folder).is_dir() and Path(f"/proc/{sleeper}").exists()
        owner.send_signal(signal.SIGKILL)
    region = SHARED_MEMORY / f"{Path(folder).name}-region"
    deadline = time.monotonic() + 20
    while Path(folder).exists() or region.exists() or Path(f"/proc/{sleeper}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def keeper(scratch: Scratch) -> int:
    """The live one, whose command line comes a moment after it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            if str(scratch.folder) in arguments(int(folder.name)):
                return int(folder.name)
    raise AssertionError("there is no keeper")


@pytest.mark.parametrize("tended", [True, False])
def test_a_killed_keeper_is_replaced(tended: bool) -> None:
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with Scratch() as scratch:
        scratch.guard(sleeper.pid)
        first = keeper(scratch)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        if tended:
            scratch.tend()
            assert keeper(scratch) != first
        (SHARED_MEMORY / f"{scratch.prefix}1").touch()
    assert sleeper.wait(10) == -signal.SIGKILL
    assert not scratch.folder.exists() and not list(SHARED_MEMORY.glob(f"{scratch.prefix}*"))


def test_regions_are_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scratch() as scratch:
        region, link = (SHARED_MEMORY / f"{scratch.prefix}{name}" for name in "12")
        for file in (region, tmp_path / "file"):
            file.touch()
            file.chmod(0o644)
        link.symlink_to(tmp_path / "file")  # somebody else's idea
        with monkeypatch.context() as patch:
            patch.setattr("os.getuid", lambda: -1)  # all of it is somebody else's
            scratch.tend()
            scratch.remove_regions()
        assert region.stat().st_mode & 0o777 == 0o644
        scratch.tend()
        assert region.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["a space", "é", "$x", "long" * 20, "missing"])
def test_where_triton_cannot_work_another_place_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert str(safe_base()) == "/tmp"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"^the server's temporary files cannot lie in .*: give TMPDIR a folder"):
        safe_base()
