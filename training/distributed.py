"""The processes of a run: one alone, or those that torchrun started, on one machine or on several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from training.predictor import open_device

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


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process's place; under torchrun it joins the others (NCCL on GPUs, else gloo)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    target = open_device(device)
    if world == 1:
        yield Process(0, 1, target)
        return
    if target.type == "cuda":
        target = open_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(target)
        dist.init_process_group("nccl", timeout=LONGEST_WAIT, device_id=target)
    else:
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    yield Process(dist.get_rank(), world, target)
    dist.destroy_process_group()  # not after an error: the others may be waiting inside a collective


def gather(value: T, process: Process) -> list[T]:
    """Everyone's `value`, in the order of the ranks, on every process. The values are pickled: small ones alone."""
    if process.world == 1:
        return [value]
    values: list = [None] * process.world
    dist.all_gather_object(values, value)
    return values
