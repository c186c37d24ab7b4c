"""A process that has torch imported once and forks the processes of runs, which may be killed.

`python -m tests.training.child_processes` reads one JSON list of jobs from each line of its input, forks a process for
each, and answers with how they ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import training.checkpoint
from tests.training.tiny_network import Accident, Losses, TinyNetwork, no_accident, sends_signal, tiny
from training.config import Config, load_config
from training.loop import UPSNET, train

ROOT = Path(__file__).resolve().parents[2]
LONGEST_JOB = 240.0  # seconds; the tests' own take seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class ChildProcesses:
    """The process that forks. `run` starts one process for each job, together, and waits for all.

    A job: config and out (paths), env (more environment), real (the real network), kill (forward pass, seconds: SIGKILL
    that much later), kill_in_save (the number of a checkpoint: SIGKILL when half of it is written), stop (forward pass:
    SIGTERM), freeze (forward pass: SIGSTOP; give it last, as it is killed when the jobs before it have ended), patch
    (new values of modules' names), stderr (a file).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, 0
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.training.child_processes"]
        self.process = subprocess.Popen(
            command, env=os.environ | environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def job(self, config: Config, out: Path, **more: Any) -> dict[str, Any]:
        self.jobs += 1
        path = self.folder / f"{self.jobs}.json"  # JSON is YAML
        path.write_text(config.model_dump_json())
        return {"config": str(path), "out": str(out), **more}

    def ranks(self, world: int, config: Config, out: Path, **more: Any) -> list[dict[str, Any]]:
        """The jobs of `world` processes in the environment that torchrun gives them."""
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        return [self.job(config, out, env=rank, **more) for rank in ranks]

    def run(self, *jobs: dict[str, Any]) -> list[int]:
        """The processes' exit codes, negative for the signal that ended one."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def kills_itself(at: int, seconds: float) -> Accident:
    """SIGKILL `seconds` after the forward pass `at` has begun."""

    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call == at:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return losses

    return accident


def break_save(number: int) -> None:
    """Let the process die of SIGKILL when half of its checkpoint number `number` is written."""
    save_file, calls = training.checkpoint.save_file, iter(range(1, 1 << 30))

    def half(tensors: dict[str, Tensor], filename: Any, metadata: dict[str, str] | None = None) -> None:
        save_file(tensors, filename, metadata)
        if next(calls) == number:
            os.truncate(filename, os.stat(filename).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    training.checkpoint.save_file = half


def ended(child: int, job: dict[str, Any]) -> int:
    """How the child ended; by SIGKILL where it is late: one that waits for ever fails its test, and no other."""
    kill = threading.Timer(0 if "freeze" in job else LONGEST_JOB, os.kill, (child, signal.SIGKILL))
    kill.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        kill.cancel()


def forked(job: dict[str, Any]) -> int:
    """Do a job in a child of this process; returns its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ.update(job.get("env", {}))
        if "stderr" in job:
            os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT), 2)
        for name, value in job.get("patch", {}).items():
            module, _, attribute = name.rpartition(".")
            setattr(sys.modules[module], attribute, value)
        if "kill_in_save" in job:
            break_save(job["kill_in_save"])
        accident = kills_itself(*job["kill"]) if "kill" in job else no_accident
        accident = sends_signal(signal.SIGTERM, job["stop"]) if "stop" in job else accident
        accident = sends_signal(signal.SIGSTOP, job["freeze"]) if "freeze" in job else accident
        task = UPSNET if job.get("real") else tiny(noise="env" not in job, accident=accident)
        code = train(load_config(Path(job["config"])), Path(job["out"]), "cpu", task)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        jobs = json.loads(line)
        children = [forked(job) for job in jobs]
        print(json.dumps([ended(child, job) for child, job in zip(children, jobs, strict=True)]), flush=True)


if __name__ == "__main__":
    main()
