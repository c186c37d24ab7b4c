"""A machine that falls silent, as without power or network, ends the run on the others; its connections stay open."""

from __future__ import annotations

import re
import signal
import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from tests.training.child_processes import ChildProcesses
from tests.training.tiny_network import settings
from training.checkpoint import load
from training.heartbeat import LOST, Heartbeat

QUICK = {"training.heartbeat.EVERY": 0.1, "training.heartbeat.LONGEST_SILENCE": 2.0}


@pytest.mark.parametrize(
    ("frozen", "who"), [(1, f"process 1 on {re.escape(socket.gethostname())}"), (0, "any process")]
)
def test_a_silent_machine_is_noticed(
    children: ChildProcesses, shapes: Path, tmp_path: Path, frozen: int, who: str
) -> None:
    """Also where it is the machine of the store, which then answers nothing."""
    config = settings(shapes, iterations=100_000, checkpoint_every=1, evaluate_every=0)
    jobs = [job | {"patch": QUICK} for job in children.ranks(2, config, tmp_path / "run")]
    for job in jobs:
        job["env"] |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    alive = jobs[1 - frozen] | {"stderr": str(tmp_path / "said")}
    assert children.run(alive, jobs[frozen] | {"freeze": 4}) == [LOST, -signal.SIGKILL]
    said = (tmp_path / "said").read_text()
    assert re.search(
        f"^error: nothing was heard of {who} of this run for 2 s; the checkpoints are from before$", said, re.M
    )
    assert load(tmp_path / "run/last.safetensors").step == 3


class FrozenStore:
    """Two processes count up in it, until it is asked for the number of `asked_last` the `last`th time: then it answers
    nobody any more, and who asks waits. slow: the first process counts up once alone."""

    def __init__(self, asked_last: str, last: int = 3, slow: bool = False) -> None:
        self.asked_last, self.last, self.asked, self.numbers = asked_last, last, 0, {"said": 0}
        self.slow = slow
        self.frozen = threading.Event()

    def answer(self) -> None:
        if self.frozen.is_set():
            threading.Event().wait()

    def set_timeout(self, timeout: timedelta) -> None: ...

    def set(self, key: str, value: str) -> None:
        self.answer()

    def get(self, key: str) -> bytes:
        self.answer()
        return b"some-host"

    def add(self, key: str, number: int) -> int:
        if key == self.asked_last and number == 0:
            self.asked += 1
            if self.asked == self.last:
                self.frozen.set()
        self.answer()
        if key.startswith("beat"):
            number = 0 if self.slow and key == "beat/0" and key in self.numbers else 1
        self.numbers[key] = self.numbers.get(key, 0) + number
        return self.numbers[key]


@pytest.mark.parametrize(
    "store",
    [FrozenStore("said"), FrozenStore("beat/0"), FrozenStore("beat/1"), FrozenStore("said", 8, slow=True)],
    ids=["asked what is said", "asked for process 0", "asked for process 1", "process 0 was slow before"],
)
def test_a_store_that_freezes_between_two_answers_is_noticed(
    store: FrozenStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever noticed it once asked it for a name, and waited for ever. Nor is a process to blame that it kept."""
    left = threading.Event()

    def leave(status: int) -> None:
        assert status == LOST
        beats.stopped.set()
        left.set()

    monkeypatch.setattr("training.heartbeat.EVERY", 0.02)
    monkeypatch.setattr("training.heartbeat.LONGEST_SILENCE", 0.5)
    monkeypatch.setattr("training.heartbeat.leave", leave)
    monkeypatch.setattr("training.heartbeat.dist.PrefixStore", lambda prefix, store: store)
    beats = Heartbeat(store, 1, 2, looks=True, spread=False)  # type: ignore[arg-type]
    assert left.wait(30), "nobody noticed"
    assert "nothing was heard of any process of this run" in capsys.readouterr().err
