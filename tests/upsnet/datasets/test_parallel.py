"""Several processes: what ends one of them ends all, in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from upsnet.datasets.parallel import map_parallel
from upsnet.errors import InputError

WORK = """
import os, sys, time
from upsnet.datasets.parallel import map_parallel
def work(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(0.1)
if __name__ == "__main__":
    for _ in map_parallel(work, [sys.argv[1]] * 10_000, 2):
        pass
"""


def run_out_of_memory(piece: int) -> int:
    if piece == 3:
        raise MemoryError
    return piece


def kill(piece: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_memory_is_one_line(workers: int) -> None:
    with pytest.raises(InputError, match=rf"^memory ran out in one of {workers} worker processes; give fewer"):
        list(map_parallel(run_out_of_memory, range(9), workers))


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^one of 2 worker processes died: if memory ran out, give fewer"):
        list(map_parallel(kill, range(9), 2))


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    (script := tmp_path / "work.py").write_text(
        "from upsnet.datasets.parallel import map_parallel\nprint(list(map_parallel(abs, [-1, -2], 2)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert 'call this below `if __name__ == "__main__":`, or with workers=1' in done.stderr


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_has_the_work(tmp_path: Path, number: int) -> None:
    """However it ends; Ctrl-C, which a terminal sends to all of them, is answered once."""
    (tmp_path / "work.py").write_text(WORK)
    (notes := tmp_path / "workers").mkdir()
    command = [sys.executable, str(tmp_path / "work.py"), str(notes)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as main:
        while len(list(notes.iterdir())) < 2:
            assert main.poll() is None
            time.sleep(0.05)
        os.kill(main.pid, number) if number == signal.SIGKILL else os.killpg(main.pid, number)
        _, stderr = main.communicate(timeout=60)  # the workers hold its stderr: they have ended
    assert main.returncode == -number and stderr.count("Traceback") <= 1
    assert not any(alive(int(note.name)) for note in notes.iterdir())
