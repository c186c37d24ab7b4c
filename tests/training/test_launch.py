"""`upsnet train --processes`: what a person reads of several processes is one run's words."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.distributed.elastic.agent.server import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

from tests.training.child_processes import ROOT
from tests.training.tiny_network import SMALL, settings
from training.checkpoint import load
from training.distributed import LostProcess, first_to_fail, processes
from training.distributed import end_status as process_status
from training.heartbeat import LOST
from training.launch import Agent, Machines, end_status, launch, process_count
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError, ServerError


@pytest.fixture
def small(shapes: Path, tmp_path: Path) -> Path:
    """A folder with the real network's small configuration, and more loader workers than any machine has cores."""
    schedule: dict[str, Any] = {"iterations": 3, "images_per_step": 4, "evaluate_every": 3, "lr": 0.005, "ema": 0.9}
    config = settings(shapes, model=SMALL, data={"workers": 1024}, **schedule)
    (tmp_path / "small.yaml").write_text(config.model_dump_json())  # which is YAML too
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "upsnet", "train", "--processes=2", "--config=small.yaml", "--out=runs/run", *more]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_progress_alone(stderr: str) -> None:
    """Of the progress bar, not of a warning."""
    lines = [line for line in re.split(r"[\r\n]", stderr) if line.strip()]
    assert lines
    assert [line for line in lines if not re.match(r"tiny: +\d+%\|", line)] == []


def test_two_processes_train_without_a_warning(small: Path) -> None:
    with start(small) as run:
        stdout, stderr = run.communicate(timeout=150)
    assert run.returncode == 0, stderr
    assert_progress_alone(stderr)
    workers = max(1, usable_cores() // 2)
    assert f"data.workers: 1024, and {workers} a process are started, for want of cores\n" in stdout
    assert stdout.count("starts from random weights") == 1
    assert load(small / "runs/run/last.safetensors").step == 3
    left = [path.name for folder in ("runs", "tmp") for path in (small / folder).iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == ["run"]  # nothing of the launcher's


def test_a_signal_stops_both_and_saves(small: Path) -> None:
    with start(small, "--iterations=100000", "--set=schedule.evaluate_every=0") as run:
        metrics = small / "runs/run/metrics.jsonl"
        while not metrics.exists() or not metrics.read_text():  # the first step's
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert stderr.splitlines()[-1] == "stopped by signal 15, checkpoint written; the same command goes on from there"
    assert load(small / "runs/run/last.safetensors").step > 0


@pytest.mark.parametrize("check", ["full", "json"])
def test_a_photo_that_one_process_cannot_read_ends_both_in_one_line(small: Path, shapes: Path, check: str) -> None:
    """Whichever process meets it, before step 1 or in one of its loader's workers; the other one waits meanwhile."""
    photos = small / "photos"
    shutil.copytree(shapes / "train", photos)
    faulty = sorted(photos.iterdir())[2]
    faulty.write_bytes(faulty.read_bytes()[:60])
    with start(small, f"--set=data.train.images={photos}", f"--set=data.check={check}") as run:
        _, stderr = run.communicate(timeout=150)
    assert run.returncode == 2 and "Traceback" not in stderr
    assert (small / "runs/run/config.yaml").exists() == (check == "json")
    errors = [line for line in re.split(r"[\r\n]", stderr) if "error" in line]
    assert len(errors) == 1 and errors[0].startswith(
        f"error: {shapes / 'train.json'}: image 3: {faulty}: not a readable image: "
    )


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [process_count(text) for text in ("1", "12", "gpu")] == [1, 12, 3]
    for text in ("0", "-1", "abc", "1.5", ""):
        with pytest.raises(InputError, match=rf"^--processes {text}: give a number from 1 up, .*has 3\)$"):
            process_count(text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^--processes gpu: PyTorch has no GPU here \(.+\)$"):
        process_count("gpu")


@pytest.mark.parametrize(
    ("ended", "status", "said"),
    [
        ({1: 2, 0: -signal.SIGTERM}, 2, ""),
        ({1: -signal.SIGKILL, 0: LOST}, 137, "error: process 1 of 2 was ended by SIGKILL\n"),
        ({0: -signal.SIGKILL, 1: 2}, 2, ""),
        ({0: LOST}, LOST, ""),
        ({0: 143, 1: 143}, 143, ""),
        ({}, 0, ""),
    ],
)
def test_one_failure_decides(
    ended: dict[int, int], status: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bad input before anything else, as it must not start again; the loss of another process is no reason itself."""
    failures = {rank: ProcessFailure(rank, 1, code, str(tmp_path / "none")) for rank, code in ended.items()}
    state = WorkerState.FAILED if failures else WorkerState.SUCCEEDED
    assert end_status(RunResult(state, failures=failures), 2) == status
    assert capsys.readouterr().err == said


def test_processes_that_do_not_reach_each_other_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(InputError, match=r"^the processes of this run do not reach each other: [^\n]*$"):  # noqa: SIM117
            with processes("cpu"):
                pass


def test_one_process_of_a_machine_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong, lost, told = InputError("a.png: cut"), LostProcess("gone"), LostProcess("gone", told=True)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    away = ServerError("s3://data: away")
    assert [first_to_fail(error) for error in (wrong, lost, told, away)] == [True, True, False, True]
    assert [process_status(error) for error in (wrong, lost, told, away)] == [2, LOST, 2, LOST]
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    says = []
    for rank in range(3):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}/error.json"))
        says.append(first_to_fail(wrong))
    assert says == [True, False, False]


def test_a_machine_without_an_address_of_its_own_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "nothing answers there", which the same command would meet again and again."""
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(InputError, match=r"^this machine does not know the address of its own name, nowhere\.invalid "):
        launch(1, [], "runs/x", Machines(2, 2, "192.0.2.1:29500"))
    assert not logging.root.manager.disable


def test_bad_input_told_by_a_host_that_has_ended_is_bad_input_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HOST's launcher ends, and with it the meeting, before the process here has ended for the same reason."""
    codes = [None, None, 2]

    def monitored(agent: Agent, group: object) -> RunResult:
        code = codes.pop(0)
        failures = {} if code is None else {0: ProcessFailure(0, 1, code, str(tmp_path / "none"))}
        return RunResult(WorkerState.FAILED if failures else WorkerState.HEALTHY, failures=failures)

    agent = object.__new__(Agent)
    agent._pcontext, agent._worker_group, agent._remaining_restarts = Mock(), Mock(), 1
    monkeypatch.setattr(LocalElasticAgent, "_invoke_run", Mock(side_effect=RendezvousConnectionError("gone")))
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", monitored)
    assert end_status(agent._invoke_run(), 2) == 2
    codes[:] = [None, LOST]
    with pytest.raises(RendezvousConnectionError):
        agent._invoke_run()
    agent._pcontext = None  # the meeting was not reached at all
    with pytest.raises(RendezvousConnectionError):
        agent._invoke_run()
