"""The processes of a run: one alone, or those that torchrun started, on one machine or on several."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from training.device import describe_device, open_device, problem_with_cuda
from training.heartbeat import LOST, Heartbeat, leave
from upsnet.device import parse_device
from upsnet.errors import BAD_INPUT, InputError, ServerError, first_line

T = TypeVar("T")

MEETING = timedelta(minutes=10)  # from the start of the first process to that of the last one
LONGEST_WAIT = timedelta(hours=2)  # of the other processes, while one evaluates a larger share or writes a checkpoint
PR_SET_PDEATHSIG = 1

_heartbeat: Heartbeat | None = None  # of this process, from when it has met the others


class LostProcess(InputError):
    """Another process of the run has ended, or cannot be reached. `told`: it has said what is wrong with the run."""

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


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


def launched() -> bool:
    """Whether torchrun, or `upsnet train` for it, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Whether a launcher starts this run again when one of its processes ends."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def first_to_fail(error: Exception) -> bool:
    """Whether this process is the first of the run's to ask: one says what is wrong, not all of them.

    On a machine torchrun gives each process a file for its error, ATTEMPT/RANK/error.json; the first process leaves a
    mark in ATTEMPT. Among machines the heartbeats' store decides, and all end for good; what may pass is said by each.
    torchrun ends all processes when one has ended, so SIGTERM is ignored until the first has said its line.
    """
    if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            (Path(error_file).parents[1] / "failed").touch(exist_ok=False)
        except FileExistsError:
            return False
    if isinstance(error, LostProcess | ServerError):
        return not getattr(error, "told", False)
    return _heartbeat is None or _heartbeat.first_to_say()


def end_status(error: Exception) -> int:
    """The exit status of a process with this error: LOST where the same command may go on, else BAD_INPUT."""
    passing = isinstance(error, LostProcess | ServerError) and not getattr(error, "told", False)
    return LOST if passing else BAD_INPUT


def end_process(status: int) -> NoReturn:
    """Exit. Under torchrun without Python's own tidying, in which the threads of gloo and NCCL, which still wait for
    the other processes, now and then abort the process: its status would be SIGABRT's."""
    if _heartbeat:
        _heartbeat.linger()
    if launched():
        leave(status)
    raise SystemExit(status)


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process's place; under torchrun it joins the others (NCCL on GPUs, else gloo). Its GPU becomes CUDA's
    current one, on which libraries put their streams, events and memory.

    LostProcess where the processes do not reach each other, or this one has lost another.
    """
    global _heartbeat
    _heartbeat = None
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if launched():  # a launcher that is killed takes its processes along, which write a checkpoint first
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if world == 1:
        yield Process(0, 1, _own_device(device, world))
        return
    try:
        store, rank, _ = next(iter(dist.rendezvous("env://", timeout=MEETING)))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        _heartbeat = Heartbeat(store.clone(), rank, world, looks=first, spread=local < world)
        target = _own_device(device, world)
        backend, gpu = ("nccl", target) if target.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=LONGEST_WAIT, store=store, rank=rank, world_size=world, device_id=gpu)
        yield Process(dist.get_rank(), world, target)
    except RuntimeError as error:
        if "gloo/transport" in str(error):
            told = _heartbeat is not None and _heartbeat.is_said()
            raise LostProcess("another process of this run has ended; the checkpoints are from before", told) from None
        if isinstance(error, dist.DistError):
            raise LostProcess(f"the processes of this run do not reach each other: {first_line(error)}") from None
        raise
    dist.destroy_process_group()  # not after an error: the others may be waiting inside a collective
    _heartbeat.stop()
    _heartbeat = None


def _own_device(device: str, world: int) -> torch.device:
    """This process's own. Its GPU becomes CUDA's current one."""
    if world > 1 and parse_device(device).number:
        raise InputError(f"device {device!r}: each process of a run takes a GPU of its own; use cuda, or auto")
    target = open_device(device, warn=launched_rank() == 0)
    if target.type == "cuda":
        target = target if world == 1 else open_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(target)
    return target


def gather(value: T, process: Process) -> list[T]:
    """Everyone's `value`, in the order of the ranks, on every process. The values are pickled: small ones alone."""
    if process.world == 1:
        return [value]
    values: list = [None] * process.world
    dist.all_gather_object(values, value)
    return values
