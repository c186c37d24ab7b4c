"""A machine that falls silent, as without power or network, ends the run on the others; its connections stay open."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.training.child_processes import ChildProcesses
from tests.training.tiny_network import settings
from training.checkpoint import load
from training.heartbeat import LOST

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
