"""The canary: while a lease holds, a candidate is asked for a share of what callers ask the version in service.

Callers wait for none of it. One request at a time is mirrored, by a process of its own (serving/front/mirror.py); what
is chosen meanwhile is dropped, and counted. So the memory that it takes is that of one request, and the load that it
adds one request to each version at a time, whatever the share.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from serving.backend import Fleet, Member, State
from serving.environment import ROOT
from serving.front.mirror import Job
from serving.front.requests import Asked
from serving.processes import LAUNCHER
from serving.record import Record
from serving.rollouts.lease import Lease, read_lease
from serving.rollouts.tally import MISSING, Compared, Tally
from upsnet.errors import first_line

LOOK_SECONDS = 0.5  # between two looks at the lease
NICE = 10  # of the process: what callers wait for goes first
SPARE_SECONDS = 30.0  # beyond both versions' deadlines, for the process to start, to read and to compare
BUSY, LARGE = "another one was being mirrored", "it is a large request"
OUTCOMES = ("compared", "failed", "late", "skipped")


class Canary:
    """A `Sampler`. lease: the file (serving/rollouts/lease.py)."""

    def __init__(
        self,
        fleet: Fleet,
        lease: Path,
        registry: CollectorRegistry,
        chance: Callable[[], float] = random.random,
        command: tuple[str, ...] = ("-P", "-m", "serving.front.mirror"),
    ) -> None:
        self._fleet, self._path, self._chance, self._command = fleet, lease, chance, command
        self._lease: Lease | None = None
        self._tally: Tally | None = None
        self._trouble = ""
        self._restarts = 0  # of the candidate, when the tally began
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._mirroring: asyncio.Task[None] | None = None
        self._swapped = False
        self._requests = Counter(
            "upsnet_canary_requests", "Requests that were mirrored to a candidate.", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._look_on())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        self._lease = None
        self._abandon()

    def answered(self, version: int, record: Record, asked: Asked, body: bytes, header_length: int | None) -> None:
        if self._lease is None or not self._lease.holds or self._tally is None or version != self._tally.serving:
            return
        self._tally.seen += 1
        if self._chance() >= self._lease.share:
            return
        if self._mirroring is not None:
            self._skip(BUSY)
        elif asked.large:  # it would take the place that large requests leave to small ones
            self._skip(LARGE)
        elif (pair := self._pair()) is None:
            self._skip("a version was not ready")
        else:
            serving, candidate = (member.backend.grpc_target for member in pair)
            job = Job(
                targets=(serving, candidate),
                model=record.model,
                size=len(body),
                rest=record.protocol == "http",
                header_length=header_length,
                deadline=self._lease.deadline,
                swapped=self._swapped,
            )
            self._swapped = not self._swapped
            self._mirroring = asyncio.create_task(self._mirror(job, body, record.request_id))

    def figures(self) -> dict[str, Any] | None:
        """serving.rollouts.tally.Figures; None where there was no canary."""
        if self._tally is None:
            return None
        if (member := self._candidate()) is not None:
            self._tally.restarts = member.backend.health.restarts - self._restarts
        return self._tally.figures(self._lease is not None, self._trouble)

    async def _look_on(self) -> None:
        while True:
            try:
                self._heed(await asyncio.to_thread(read_lease, self._path))
            except Exception as error:  # the service goes on without
                self._lease, self._trouble = None, first_line(error)
            if self._lease is None:
                self._abandon()
            await asyncio.sleep(LOOK_SECONDS)

    def _heed(self, lease: Lease | None) -> None:
        """This one holds now; and what is in its way."""
        serving = self._fleet.serving.version
        if lease is None:
            self._lease = None
            return
        if self._tally is None or (self._tally.lease, self._tally.serving) != (lease.id, serving):
            self._abandon()
            self._tally = Tally(lease.id, lease.version, serving, lease.share)
            found = self._fleet.members.get(lease.version)
            self._restarts = found.backend.health.restarts if found else 0
        self._lease, self._trouble = lease, self._in_the_way(lease, serving)
        if not self._trouble and self._mirroring is None:
            self._begin_process()

    def _in_the_way(self, lease: Lease, serving: int) -> str:
        version = lease.version
        if version == serving:
            return f"version {version} is in service itself"
        if version in self._fleet.failed:
            return f"version {version} does not run: {self._fleet.failed[version]}"
        if version not in self._fleet.members:
            return f"version {version} is {MISSING}"
        health = self._fleet.members[version].backend.health
        if health.state != State.READY:
            return f"version {version} is {health.state}: {'; '.join(health.reasons)}"
        return ""

    def _candidate(self) -> Member | None:
        return None if self._tally is None else self._fleet.members.get(self._tally.version)

    def _pair(self) -> tuple[Member, Member] | None:
        """The version in service and the candidate, where both answer."""
        serving, candidate = self._fleet.serving, self._candidate()
        if candidate is None or candidate.version == serving.version:
            return None
        pair = serving, candidate
        return pair if all(each.backend.health.state == State.READY for each in pair) else None

    def _abandon(self) -> None:
        """What is being compared is of no use any more: a candidate that hangs would keep the next canary waiting."""
        if self._mirroring is not None:
            self._mirroring.cancel()
            self._mirroring = None
        self._end_process()

    def _skip(self, why: str) -> None:
        assert self._tally is not None
        self._tally.skip(why)
        self._requests.labels("skipped").inc()

    async def _mirror(self, job: Job, body: bytes, request_id: str) -> None:
        """Has one request compared. The bytes go to the process, and its answer comes, in a thread that only waits."""
        tally = self._tally
        assert tally is not None
        try:
            self._begin_process()
            try:
                async with asyncio.timeout(2 * job.deadline + SPARE_SECONDS):
                    line = await asyncio.to_thread(self._ask, job, body)
                found = Compared.model_validate_json(line)
            except (OSError, ValueError, TimeoutError) as error:
                self._end_process()
                found = Compared(skipped=f"the comparison was lost: {first_line(error)}")
            self._requests.labels(tally.add(request_id, found)).inc()
        finally:
            if self._mirroring is asyncio.current_task():
                self._mirroring = None

    def _ask(self, job: Job, body: bytes) -> bytes:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        process.stdin.write(body)
        process.stdin.flush()
        if not (line := process.stdout.readline()):
            raise OSError("its process has ended")
        return line

    def _begin_process(self) -> None:
        """It is started before the first request: its imports take a second."""
        if self._process is None or self._process.poll() is not None:
            self._end_process()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), sys.executable, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)

    def _end_process(self) -> None:
        """A thread that waits for it gets nothing, and ends."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            with suppress(OSError, ValueError):  # of a thread that uses its pipes at this moment
                process.communicate()
