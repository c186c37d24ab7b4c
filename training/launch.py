"""Several processes of one run on this machine: torchrun, with one line where it prints a wall of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from training.device import problem_with_cuda
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError

SIGNALLED = 128  # plus the signal's number: what a shell reports of a process that a signal ended


def process_count(text: str) -> int:
    """`--processes`: a number from 1 up, or `gpu` for one on each GPU. InputError for anything else."""
    if text == "gpu" and (problem := problem_with_cuda()):
        raise InputError(f"--processes gpu: PyTorch has no GPU here ({problem})")
    gpus = torch.cuda.device_count()
    count = gpus if text == "gpu" else int(text) if text.isdecimal() else 0
    if count < 1:
        raise InputError(
            f"--processes {text}: give a number from 1 up, or gpu for one on each GPU (this machine has {gpus})"
        )
    return count


def launch(processes: int, arguments: Sequence[str]) -> int:
    """`python -m training.train ARGUMENTS` in each process -> exit status: 0, else that of the first one to fail."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    logging.disable(logging.ERROR)  # torchrun's own account of what has failed
    flags = ["--standalone", f"--nproc_per_node={processes}", "--module", "training.train"]
    try:
        run.run(run.parse_args([*flags, *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said why
            return failure.exitcode
        print(f"error: process {rank} of {processes} was ended by {failure.signal_name()}", file=sys.stderr)
        return SIGNALLED - failure.exitcode
    except SignalException as error:
        return SIGNALLED + error.sigval
    return 0
