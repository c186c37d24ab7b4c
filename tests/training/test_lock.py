"""One run in a folder at a time: the second is refused and touches nothing, and a killed one leaves no lock behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import training.lock
from tests.training.child_processes import ROOT, ChildProcesses
from tests.training.tiny_network import settings, tiny
from training.lock import locked
from training.loop import train
from upsnet.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from training.lock import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(600)
"""


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time of change and bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_second_run_is_refused_and_the_first_ones_end_by_sigkill_frees_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        (tmp_path / ".last.1234.safetensors").write_text("being written")
        before = contents(tmp_path)
        who = f"process {holder.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}: {who} trains there; stop it") as refusal:
            locked(tmp_path).__enter__()
        assert "\n" not in str(refusal.value)
        assert contents(tmp_path) == before
        holder.kill()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not (tmp_path / ".lock").exists()


def test_a_finished_run_is_refused_too(unbroken: Path, shapes: Path) -> None:
    with locked(unbroken):
        before = contents(unbroken)
        with pytest.raises(InputError, match=f"process {os.getpid()} on "):
            train(settings(shapes), unbroken, "cpu", tiny())
        assert contents(unbroken) == before


def test_a_killed_runs_loader_workers_do_not_keep_its_folder(
    children: ChildProcesses, shapes: Path, tmp_path: Path
) -> None:
    config = settings(shapes, data={"workers": 1}, evaluate_every=0)
    assert children.run(children.job(config, tmp_path / "run", kill=(3, 0))) == [-signal.SIGKILL]
    assert (tmp_path / "run/.lock").exists()
    with locked(tmp_path / "run"):  # the worker looks every few seconds whether its parent is there
        pass


def test_a_refusal_ends_every_process_of_a_run(children: ChildProcesses, shapes: Path, tmp_path: Path) -> None:
    with locked(tmp_path):
        before = contents(tmp_path)
        assert children.run(*children.ranks(2, settings(shapes), tmp_path)) == [1, 1]
        assert contents(tmp_path) == before


def test_machines_that_do_not_share_the_folder_are_refused_at_the_start(
    children: ChildProcesses, shapes: Path, tmp_path: Path
) -> None:
    """And not when the first of them is lost, after days."""
    (first, second), said = children.ranks(2, settings(shapes), tmp_path / "a"), tmp_path / "said"
    second |= {"out": str(tmp_path / "b")}
    quick = {"patch": {"training.lock.NEW_FILE": 0.5}}
    assert children.run(first | quick | {"stderr": str(said)}, second | quick) == [1, 1]
    assert "a: another folder on another machine; give an --out on a disk that all of them share\n" in said.read_text()
    assert not (tmp_path / "a").exists()


def test_a_run_that_is_started_again_waits_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as before:
        assert before.stdout
        before.stdout.readline()
        threading.Timer(0.5, before.kill).start()
        with locked(tmp_path, patience=60):
            assert before.wait() == -signal.SIGKILL
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    who = f"process {before.pid} on {socket.gethostname()}"
    assert capsys.readouterr().err == f"{tmp_path}: {who} trains there; waiting up to 60 s for its end\n"


def test_a_refused_torchrun_says_one_line(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(settings(shapes).model_dump_json())  # which is YAML too
    command = [sys.executable, "-m", "upsnet", "train", "--processes=2", "--config=tiny.yaml", "--out=run"]
    with locked(tmp_path / "run"):
        before = contents(tmp_path)
        ended = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert contents(tmp_path) == before
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(rf"\n?error: run: process {os.getpid()} on \S+ trains there; stop it, .*\n", ended.stderr)


def test_leaves_no_folder_behind_that_it_made_for_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "runs/a"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with locked(tmp_path / "runs/a"):
        (tmp_path / "runs/a/config.yaml").touch()
    with locked(tmp_path / "runs"):
        pass
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["runs", "runs/a", "runs/a/config.yaml"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/run: cannot be written: Not a directory"):
        locked(tmp_path / "file/run").__enter__()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(training.lock.FileLock, "acquire", refuse)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    warning = f"{tmp_path / 'run'}: its file system has no locks; see that no other run writes there\n"
    assert capsys.readouterr().err == warning
