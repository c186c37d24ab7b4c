"""The processes of a run: one alone, or those that torchrun started, on one machine or on several."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from training.device import describe_device, open_device, problem_with_cuda
from upsnet.device import parse_device
from upsnet.errors import InputError, first_line

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=2)  # of the other processes, while one evaluates a larger share or writes a checkpoint


class Process(NamedTuple):
    """This process among `world`; each has its own device on GPUs."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The one that writes the run's files."""
        return self.rank == 0

    @property
    def described(self) -> str:
        """What computes, for people; where it is the CPU because PyTorch has nothing else, why."""
        if self.device.type == "cuda":
            others = f", and another GPU for each other process of {self.world}" if self.world > 1 else ""
            return describe_device(self.device) + others
        problem = problem_with_cuda()
        return f"cpu (PyTorch has no GPU: {problem})" if problem else "cpu"

    @property
    def late(self) -> int:
        """How many steps later a step's numbers are read: a GPU computes on meanwhile, a CPU has them at once."""
        return 1 if self.device.type == "cuda" else 0


def launched_rank() -> int:
    """This process's place among those that torchrun started; 0 where it started none."""
    return int(os.environ.get("RANK", "0"))


def first_to_fail() -> bool:
    """Whether this process is the first of the run's on this machine to ask: one says what is wrong, not all of them.

    torchrun gives each process a file for its error, ATTEMPT/RANK/error.json; the first process leaves a mark in
    ATTEMPT. torchrun ends all processes when one has ended, so SIGTERM is ignored until the first has said its line.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        (Path(error_file).parents[1] / "failed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def end_process(status: int) -> NoReturn:
    """Exit. Under torchrun without Python's own tidying, in which the threads of gloo and NCCL, which still wait for
    the other processes, now and then abort the process: its status would be SIGABRT's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk
                stream.flush()
        os._exit(status)
    raise SystemExit(status)


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process's place; under torchrun it joins the others (NCCL on GPUs, else gloo). Its GPU becomes CUDA's
    current one, on which libraries put their streams, events and memory.

    InputError where the processes do not reach each other, or one has lost another, which has said why where it could.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and parse_device(device).number:
        raise InputError(f"device {device!r}: each process of a run takes a GPU of its own; use cuda, or auto")
    target = open_device(device, warn=launched_rank() == 0)
    if target.type == "cuda":
        target = target if world == 1 else open_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(target)
    if world == 1:
        yield Process(0, 1, target)
        return
    try:
        if target.type == "cuda":
            dist.init_process_group("nccl", timeout=LONGEST_WAIT, device_id=target)
        else:
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        yield Process(dist.get_rank(), world, target)
    except RuntimeError as error:
        if "gloo/transport" in str(error):
            raise InputError("another process of this run has ended; the checkpoints are from before") from None
        if isinstance(error, dist.DistError):
            raise InputError(f"the processes of this run do not reach each other: {first_line(error)}") from None
        raise
    dist.destroy_process_group()  # not after an error: the others may be waiting inside a collective


def gather(value: T, process: Process) -> list[T]:
    """Everyone's `value`, in the order of the ranks, on every process. The values are pickled: small ones alone."""
    if process.world == 1:
        return [value]
    values: list = [None] * process.world
    dist.all_gather_object(values, value)
    return values
