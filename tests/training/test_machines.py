"""`upsnet train --nodes`: two launchers that meet on 127.0.0.1, as on two machines. What dies is started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from tests.training.child_processes import ROOT
from tests.training.machines import Run, assert_same_weights, running, worker
from tests.training.tiny_network import metrics
from training.checkpoint import load
from training.heartbeat import LOST
from training.launch import Machines, is_known, why_alone
from upsnet.datasets.shapes import write_shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", {"train": 6, "val": 3}, sizes=[(64, 96)], progress=False)
    return tmp_path


def test_bad_input_is_said_once_and_not_tried_again(folder: Path) -> None:
    """One machine's process meets it; the other one's waits for it meanwhile."""
    faulty = sorted((folder / "shapes/train").iterdir())[2]
    faulty.write_bytes(faulty.read_bytes()[:60])
    with running(Run(folder, "run"), 2, "--max-restarts=3", "--set=data.check=json") as run:
        assert run.statuses() == [2, 2]
    (line,) = run.said()
    where = f"{folder}/shapes/train.json: image 3: {folder}/shapes/train/{faulty.name}"
    assert line.startswith(f"error: {where}: not a readable image: ")


@pytest.mark.large
def test_machines_that_do_not_share_their_disk_all_end_as_bad_input(folder: Path) -> None:
    """Whichever of them is HOST: its launcher may be the first to end."""
    run, other = Run(folder, "run"), Run(folder, "run", cwd=folder / "other")
    other.port = run.port
    with running(run, 1, "--max-restarts=1"), running(other, 1, "--max-restarts=1"):
        assert run.statuses() + other.statuses() == [2, 2]
    (line,) = run.said() + other.said()
    assert line == "error: runs/run: another folder on another machine; give an --out on a disk that all of them share"


@pytest.mark.large
def test_what_dies_is_started_again_and_ends_with_the_weights_of_a_run_that_nothing_interrupts(folder: Path) -> None:
    with running(Run(folder, "unbroken", iterations=40), 2) as unbroken:
        assert unbroken.statuses() == [0, 0] and unbroken.said() == []
    with running(Run(folder, "run", iterations=40), 2, "--max-restarts=3") as run:
        run.until(run.at(5))
        os.kill(worker(run.machines[1].pid), signal.SIGKILL)  # loses what is newer than step 4's checkpoint
        run.until(lambda: "restart 1 of 3" in "".join(run.said()))
        run.until(run.at(12))
        run.machines[1].kill()  # with its worker, which asks all of them to save first
        run.start("--max-restarts=3")
        assert run.statuses() == [0, -signal.SIGKILL, 0]
    assert_same_weights(run, unbroken)
    said = "\n".join(run.said())
    assert re.search(r"^process \d of 2 was ended by SIGKILL; restart 1 of 3, from the last checkpoint$", said, re.M)
    assert re.search(r"^process \d of 2 has lost another one; restart 1 of 3, from the last checkpoint$", said, re.M)
    assert "restart 2 of 3" in said and "Traceback" not in said and "frame #" not in said


@pytest.mark.large
def test_a_machine_that_does_not_come_back_is_done_without(folder: Path) -> None:
    """The batch stays, so the losses do: up to rounding in the first step of one process, as it adds up what two did.
    (Later steps of a network that begins with random weights make more of it.)"""
    with running(Run(folder, "two", iterations=30), 2) as unbroken:
        assert unbroken.statuses() == [0, 0]
    with running(Run(folder, "run", nodes="1:2", iterations=30), 2, "--max-restarts=3") as run:
        run.until(run.at(5))
        run.machines[1].kill()
        assert run.statuses() == [0, -signal.SIGKILL]
    ours, theirs = metrics(run.out), metrics(unbroken.out)
    assert [line["step"] for line in ours] == list(range(1, 31))
    assert load(run.out / "last.safetensors").images_per_step == 2
    alone = next(step for step in range(30) if ours[step] != theirs[step])
    assert alone >= 5 and ours[alone] == pytest.approx(theirs[alone], rel=1e-5)


@pytest.mark.large
def test_a_signal_to_one_machine_saves_and_ends_all_and_the_same_command_goes_on(folder: Path) -> None:
    with running(Run(folder, "unbroken", iterations=20), 2) as unbroken:
        assert unbroken.statuses() == [0, 0]
    with running(Run(folder, "run", iterations=20), 2) as run:
        run.until(run.at(3))
        run.machines[1].terminate()
        assert run.statuses() == [128 + signal.SIGTERM] * 2
        assert 3 <= load(run.out / "last.safetensors").step < 20
        assert "stopped by signal 15, checkpoint written; the same command goes on from there" in run.said()
        run.machines = []
        run.start()
        run.start()
        assert run.statuses() == [0, 0]
    assert_same_weights(run, unbroken)


def test_a_host_without_a_name_is_told_before_it_is_waited_for() -> None:
    assert [is_known(host) for host in ("127.0.0.1:1", "localhost:1")] == [True] * 2
    assert not is_known("no-such-host.invalid:1") and not is_known(f"{'a' * 70}:1")


def test_a_host_that_is_not_there_is_one_line() -> None:
    """What PyTorch's C++ says of it, with its addresses, is not for people."""
    code = "import sys, training.launch as own; own.ANSWERING = 1; sys.exit(own.launch(1, [], 'x', own.Machines(2, 2, "
    code += "'no-such-host.invalid:29500')))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == LOST
    assert ended.stderr.startswith("error: --rendezvous no-such-host.invalid:29500: nothing answers there; ")
    assert ended.stderr.count("\n") == 1 and "a name that this machine does not know so far" in ended.stdout


def test_why_a_machine_is_alone() -> None:
    where = Machines(2, 3, "node1:29500")
    for error, expected in {
        RendezvousClosedError(): "the run has ended on another machine",
        RendezvousTimeoutError(): "fewer than 2 machines have met at node1:29500 in 10 minutes; start the same command",
        RendezvousConnectionError("a\nb"): "--rendezvous node1:29500: nothing answers there; HOST must be one of",
        RendezvousStateError("a\nb"): "a",
    }.items():
        assert why_alone(error, where).startswith(expected)
