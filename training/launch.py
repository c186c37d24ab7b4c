"""The processes of a run on this machine, and their meeting with those of others: torchrun's agent, in few words.

torchrun prints a wall of text where one line is enough, and starts everything again whatever has gone wrong, a
configuration with a wrong word too.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.agent.server.api import (
    DEFAULT_ROLE,
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig

from training.config import ScheduleConfig
from training.device import problem_with_cuda
from training.heartbeat import LOST
from training.schedule import make_plan
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import BAD_INPUT, InputError, first_line
from upsnet.silence import silent

SIGNALLED = 128  # plus the signal's number: what a shell reports of a process that a signal ended
MEETING = 600  # seconds: how long a machine waits for the others
ANSWERING = 120  # seconds: how long HOST may take to be there (an attempt; PyTorch makes two), and to answer
PARTING = 20  # seconds: how long after HOST's launcher has ended the processes here may say why
SAVING = 120  # seconds: how long after SIGTERM the processes may write their checkpoint


class Machines(NamedTuple):
    """How many machines share each step (`least` to `most` of them), and where they meet."""

    least: int = 1
    most: int = 1
    meeting_point: str = ""

    @property
    def flags(self) -> list[str]:
        """torchrun's."""
        meeting = self.meeting_point or "localhost:0"
        return [f"--nnodes={self.least}:{self.most}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}"]


ALONE = Machines()


def machines(nodes: str, meeting_point: str | None, processes: int, schedule: ScheduleConfig) -> Machines:
    """`--nodes` (N, or MIN:MAX) and `--rendezvous` (HOST:PORT). InputError for anything else, and where the images of a
    step cannot be shared by every number of machines."""
    words = nodes.split(":")
    least, most = (int(word) if word.isdecimal() else 0 for word in (words[0], words[-1]))
    if len(words) > 2 or not 1 <= least <= most:
        raise InputError(
            f"--nodes {nodes}: give how many machines there are, as 2, or from how many to how many, as 1:4"
        )
    if most > 1 and not meeting_point:
        raise InputError(f"--nodes {nodes}: give --rendezvous HOST:PORT too, HOST one of the machines, the same on all")
    if meeting_point is not None and not is_endpoint(meeting_point):
        raise InputError(f"--rendezvous {meeting_point}: give HOST:PORT, as node1:29500, HOST one of the machines")
    if least < most and not schedule.images_per_step:
        fitting = math.lcm(*range(least, most + 1)) * processes * (schedule.images_per_gpu or 1)
        raise InputError(
            f"--nodes {nodes}: a number that may change would change the batch; give schedule.images_per_step too, "
            f"as --set schedule.images_per_step={fitting}"
        )
    for number in range(least, most + 1) if least < most else ():
        try:
            make_plan(schedule, number * processes)
        except InputError as error:
            raise InputError(f"--nodes {nodes}: with {number} of them {error}") from None
    return Machines(least, most, meeting_point or "")


def is_endpoint(text: str) -> bool:
    """Whether torchrun can take this as HOST:PORT."""
    try:
        return bool(text.strip()) and parse_rendezvous_endpoint(text, default_port=0)[1] > 0
    except ValueError:
        return False


def is_known(endpoint: str) -> bool:
    """Whether HOST has an address here; a cluster's name servers may be slower than its machines."""
    try:
        return bool(socket.getaddrinfo(*parse_rendezvous_endpoint(endpoint, default_port=0)))
    except (OSError, UnicodeError):
        return False


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


def launch(processes: int, arguments: Sequence[str], run_id: str, where: Machines = ALONE, restarts: int = 0) -> int:
    """`python -m training.train ARGUMENTS` in `processes` processes here, and the same on the other machines.

    All start again, up to `restarts` times, where one ends; but not for bad input. run_id: the run's, on all machines.
    Returns the exit status: 0, else that of the first process here to fail, LOST where the other machines are not
    reached, 128 + the number of a signal.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    if restarts or where.least < where.most:
        # A new store for each attempt, which the first process holds: the agents' own keeps the words of the last one,
        # and an agent that is started again does not find it.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    name = hashlib.sha256(os.fsencode(run_id)).hexdigest()[:16]  # torchrun makes a file's name of it
    flags = [*where.flags, f"--rdzv-id={name}", f"--rdzv-conf=join_timeout={MEETING},read_timeout={ANSWERING}"]
    flags += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    if where.most > 1:
        unknown = "" if is_known(where.meeting_point) else ", a name that this machine does not know so far"
        print(
            f"waiting for the other machines at {where.meeting_point}{unknown}, up to {MEETING // 60} minutes",
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="upsnet-train-", ignore_cleanup_errors=True) as logs:
        flags.append(f"--log-dir={os.environ.get('PET_LOG_DIR') or logs}")
        torchrun = run.config_from_args(run.parse_args([*flags, "--module", "training.train", *arguments]))
        logging.disable(logging.ERROR)  # torchrun's own account of what has failed
        try:
            return _launch(torchrun, where)
        finally:
            logging.disable(logging.NOTSET)


def _launch(torchrun: tuple[LaunchConfig, Any, list[str]], where: Machines) -> int:
    config, command, given = torchrun
    meeting = (config.rdzv_backend, config.rdzv_endpoint, config.run_id, config.min_nodes, config.max_nodes)
    rendezvous: RendezvousHandler | None = None
    try:
        parameters = RendezvousParameters(*meeting, config.local_addr, **config.rdzv_configs)
        with silent():  # of each attempt
            rendezvous = get_rendezvous_handler(parameters)
        spec = WorkerSpec(
            role=config.role,
            local_world_size=config.nproc_per_node,
            rdzv_handler=rendezvous,
            entrypoint=command,
            args=tuple(given),
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
            local_addr=config.local_addr,
            numa_options=config.numa_options,
        )
        agent = Agent(spec, config.logs_specs or DefaultLogsSpecs(), shutdown_timeout=SAVING)
        result = agent.run()
        workers = agent.get_worker_group().workers
        status = end_status(result, workers[0].world_size if workers else 0)
    except SignalException as error:
        return SIGNALLED + error.sigval  # without closing: the others may wait until this machine is back
    except socket.gaierror as error:  # of this machine: HOST's is waited for
        problem = f"{socket.gethostname()} ({first_line(error)})"
        raise InputError(f"this machine does not know the address of its own name, {problem}; see /etc/hosts") from None
    except (RendezvousError, dist.DistError) as error:
        print(f"error: {why_alone(error, where)}", file=sys.stderr)
        status = LOST
    if rendezvous:
        rendezvous.shutdown()  # which ends the others, too
    return status


class Agent(LocalElasticAgent):
    """torchrun's own, but for what it says, and that it does not start again what would fail again."""

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """HOST's launcher may have ended as its processes met bad input, and ours are about to end for that, too."""
        try:
            return super()._invoke_run(role)
        except RendezvousConnectionError:
            if not self._pcontext:
                raise
            until = time.monotonic() + PARTING
            while (result := self._monitor_workers(self.get_worker_group())).state is WorkerState.HEALTHY:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            if not result.is_failed() or first_failure(result)[1] != BAD_INPUT:
                raise
            return result

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            rank, status = first_failure(result)
            if status == BAD_INPUT:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                most = worker_group.spec.max_restarts
                who = f"process {rank} of {worker_group.workers[0].world_size}"
                attempt = f"restart {most - self._remaining_restarts + 1} of {most}"
                print(f"\n{how_it_ended(who, status)}; {attempt}, from the last checkpoint", file=sys.stderr)
        return result


def first_failure(result: RunResult) -> tuple[int, int]:
    """Rank and exit code (negative: a signal's number) of what made the processes fail: bad input where there is any,
    and the loss of another process only where there is nothing else."""
    codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
    return min(codes.items(), key=lambda item: 0 if item[1] == BAD_INPUT else 2 if item[1] == LOST else 1)


def how_it_ended(who: str, status: int) -> str:
    if status < 0:
        return f"{who} was ended by {signal.Signals(-status).name}"
    if status == LOST:
        return f"{who} has lost another one"
    return f"{who} was stopped by a signal" if status > SIGNALLED else f"{who} ended with status {status}"


def end_status(result: RunResult | None, world: int) -> int:
    """The exit status of a launcher whose processes have ended so; None: the others had no need of this machine."""
    if not result or not result.is_failed():
        return 0
    rank, status = first_failure(result)
    if status > 0:  # it has said why
        return status
    print(f"error: {how_it_ended(f'process {rank} of {world}', status)}", file=sys.stderr)
    return SIGNALLED - status


def why_alone(error: Exception, where: Machines) -> str:
    """What keeps this machine from the others, in one line."""
    if isinstance(error, RendezvousClosedError):
        return "the run has ended on another machine, which has said why"
    if isinstance(error, RendezvousTimeoutError):
        return (
            f"fewer than {where.least} machines have met at {where.meeting_point} in {MEETING // 60} minutes; start "
            "the same command on all of them"
        )
    if isinstance(error, RendezvousConnectionError):
        return (
            f"--rendezvous {where.meeting_point}: nothing answers there; HOST must be one of the machines, its name "
            "known to all, the port open, and the run be under way there"
        )
    return first_line(error)
