"""Runs of `upsnet train --nodes` whose machines are launchers that meet on 127.0.0.1."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.training.child_processes import ROOT, free_port
from tests.training.tiny_network import SMALL, metrics, settings
from training.checkpoint import load


class Run:
    """Of the real network, as small as it can be, in a folder; its machines' words are in files beside it."""

    def __init__(self, folder: Path, name: str, nodes: str = "2", cwd: Path | None = None, **schedule: Any) -> None:
        """cwd: where its machines work, else `folder`, which has the data."""
        self.folder, self.nodes = cwd or folder, nodes
        self.folder.mkdir(exist_ok=True)
        self.out = self.folder / "runs" / name
        self.port, self.machines = free_port(), []  # type: tuple[int, list[subprocess.Popen[bytes]]]
        defaults = {"iterations": 8, "images_per_step": 2, "checkpoint_every": 2, "evaluate_every": 0, "lr": 0.005}
        config = settings(folder / "shapes", model=SMALL, zoom=(1, 1), **(defaults | schedule))
        (self.folder / f"{name}.yaml").write_text(config.model_dump_json())  # which is YAML too

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """One machine's launcher, in a session of its own."""
        words = ["--config", f"{self.out.name}.yaml", "--out", f"runs/{self.out.name}", "--device", "cpu"]
        words += ["--nodes", self.nodes, "--rendezvous", f"127.0.0.1:{self.port}", *more]
        machine = subprocess.Popen(
            [sys.executable, "-m", "upsnet", "train", *words],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{self.out.name}.{len(self.machines)}.txt").open("wb"),
            start_new_session=True,
        )
        self.machines.append(machine)
        if len(self.machines) == 1:  # HOST, which holds the store of the meeting
            self.until(lambda: is_open(self.port))
        return machine

    def said(self) -> list[str]:
        """What the machines wrote on stderr, but for progress."""
        lines = [line for file in sorted(self.folder.glob(f"{self.out.name}.*.txt")) for line in lines_of(file)]
        return [line for line in lines if line.strip() and not re.match(r"tiny: +\d+%\|", line)]

    def until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < until and any(each.poll() is None for each in self.machines), self.said()
            time.sleep(0.05)

    def at(self, step: int) -> Callable[[], bool]:
        """Whether a run that has reported this step."""
        file = self.out / "metrics.jsonl"
        return lambda: file.exists() and f'"step": {step}' in file.read_text()

    def statuses(self) -> list[int]:
        return [machine.wait(300) for machine in self.machines]


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def lines_of(file: Path) -> list[str]:
    return re.split(r"[\r\n]+", file.read_text())


def worker(launcher: int) -> int:
    """The training process that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if b"training.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


@contextmanager
def running(run: Run, count: int, *more: str) -> Iterator[Run]:
    """With `count` machines; whatever is left of them in the end is killed."""
    try:
        for _ in range(count):
            run.start(*more)
        yield run
    finally:
        for machine in run.machines:
            machine.kill()
            machine.wait()


def assert_same_weights(run: Run, other: Run) -> None:
    """Weights, optimizer and the losses of every step, bit for bit."""
    ours, theirs = load(run.out / "last.safetensors"), load(other.out / "last.safetensors")
    assert ours.step == theirs.step
    for part in ("model", "optimizer"):
        mine, others = getattr(ours, part), getattr(theirs, part)
        assert mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in others)
    assert metrics(run.out) == metrics(other.out)
