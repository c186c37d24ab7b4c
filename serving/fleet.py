"""The versions that a service runs: it follows what the repository's record says, and nothing else tells it anything.

A version serves when it has answered a test inference, and not before: until then, and where it does not start at all,
the one before goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from serving.backend import Member, Role
from serving.layout import NOW, ROLLOUTS, is_managed, latest_version
from serving.probe import ServerError
from serving.rollouts.record import RECORD, Record, read_record
from serving.running import Opened, Running, VersionServer
from serving.supervisor import DELAYS, Supervisor
from upsnet.contract import MODEL
from upsnet.errors import InputError

LOOK_EVERY = 0.5  # seconds, at the record
STANDBY = 600.0  # seconds that the version before is kept
ENDING = 2.0  # seconds in which a server that is not needed any more may end by itself
PRIORITY = (Role.SERVING, Role.STANDBY, Role.CANDIDATE)  # who has the memory first

logger = logging.getLogger(__name__)
Leave = Callable[[Member], Awaitable[None]]


async def leave_at_once(member: Member) -> None:
    """Where nobody has requests under way."""


@dataclass(frozen=True)
class Failed:
    """A version that does not run: why, when it failed, at which step of the record, how often since that step."""

    reason: str
    at: float
    step: int
    times: int


class VersionFleet:
    """The `Fleet` of the front.

    opener copies a version's files; of the repository's only one (None) where it has no roll-outs. supervise makes a
    version's supervisor. standby: seconds that the version before is kept after another has taken its place.
    candidates: whether they are run. memory_limit: bytes of all processes together; whoever is not in service has what
    the others leave. say is called with a line for people.

    `leave` is awaited between the moment when a member is none any more and the end of its server: until its requests
    under way have been answered, for as long as one may take. `changed` is called when anything has changed.
    """

    def __init__(
        self,
        repository: Path,
        opener: Callable[[int | None], Opened],
        supervise: Callable[..., Supervisor],
        *,
        standby: float = STANDBY,
        candidates: bool = True,
        memory_limit: int | None = None,
        look_every: float = LOOK_EVERY,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leave: Leave = leave_at_once
        self.changed: Callable[[], None] = lambda: None
        self._repository, self._opener, self._supervise = repository, opener, supervise
        self._standby, self._candidates, self._memory_limit = standby, candidates, memory_limit
        self._look_every, self._say, self._clock = look_every, say, clock
        self._record: Record | None = None
        self._seen: object = None  # which record that is
        self._trouble = ""  # that was said of it
        self._in_service: Running  # from `open` on
        self._others: dict[int, Running] = {}
        self._given_up: dict[int, Failed] = {}
        self._leaving: dict[Running, asyncio.Task[None]] = {}
        self._members: Mapping[int, Member] = MappingProxyType({})
        self._wake = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @property
    def serving(self) -> Member:
        assert self._in_service.member is not None
        return self._in_service.member

    @property
    def server(self) -> VersionServer:
        """What runs the version in service."""
        assert self._in_service.server is not None
        return self._in_service.server

    @property
    def members(self) -> Mapping[int, Member]:
        return self._members

    @property
    def failed(self) -> Mapping[int, str]:
        given_up = sorted(self._given_up.items())
        return {number: failed.reason for number, failed in given_up if number not in self._others}

    @property
    def rollouts(self) -> str:
        return self._record.id if self._record is not None else ""

    @property
    def running(self) -> list[Running]:
        """All versions, the one in service first."""
        found = [self._in_service, *self._others.values()]
        return sorted(found, key=lambda running: PRIORITY.index(running.role))

    async def open(self) -> None:
        """Copies the files of the version in service. InputError, and then nothing is left."""
        self._seen = _stamp(self._repository)
        self._record = read_record(self._repository) if is_managed(self._repository) else None
        number = self._record.serving if self._record else int(latest_version(self._repository).name)
        self._in_service = self._running(number, Role.SERVING)
        try:
            await self._in_service.open()
        except BaseException:
            await self._in_service.end()
            raise
        self._publish()

    async def start(self) -> None:
        """Starts the version in service, and then whatever else should run. InputError where that does not start."""
        self._share()
        await self._in_service.start()
        self._in_service.go_on()
        self._follower = asyncio.create_task(self._follow())

    async def wait(self) -> None:
        """Returns never; raises what the fleet itself fails with."""
        if self._follower is not None:
            await asyncio.shield(self._follower)

    def drain(self, reason: str) -> None:
        """From now on every version's health says so, and none comes or goes. Their servers are kept alive for what was
        accepted."""
        if self._follower is not None:
            self._follower.cancel()
        for running in self.running:
            running.drain(reason)

    async def stop(self) -> None:
        """Ends all servers."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])
        leaving = dict(self._leaving)
        for task in leaving.values():
            task.cancel()
        await asyncio.gather(*leaving.values(), return_exceptions=True)
        await asyncio.gather(*(running.end() for running in (*leaving, *self.running)))

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            await self._look()
            self._reconcile()
            with suppress(TimeoutError):  # asyncio.wait_for would lose a cancellation that comes with the wake
                async with asyncio.timeout(self._look_every):
                    await self._wake.wait()

    async def _look(self) -> None:
        """What the record says now; where it cannot be read, what it said last."""
        try:
            seen = await asyncio.to_thread(_stamp, self._repository)
            if seen is not None and seen != self._seen:
                self._record, self._seen = await asyncio.to_thread(read_record, self._repository), seen
            trouble = ""
        except InputError as error:
            trouble = str(error)
        if trouble not in ("", self._trouble):
            self._say(f"the roll-outs cannot be followed: {trouble}")
        self._trouble = trouble

    def _reconcile(self) -> None:
        """From what runs to what should: everything that happens to a version happens here, between two requests."""
        if (failure := self._in_service.failure) is not None:
            raise failure
        wanted = self._wanted()
        for number, running in list(self._others.items()):
            if (failure := running.failure) is not None:
                self._give_up(running, failure)
            if failure is not None or number not in wanted or not self._is_of_record(running):
                del self._others[number]
                self._let_go(running)
        wanted = self._wanted()
        self._given_up = {number: failed for number, failed in self._given_up.items() if number in wanted}
        for number, role in wanted.items():
            if number in self._others:
                self._others[number].take(role)
            elif self._may_start(number):
                self._others[number] = self._running(number, role)
                self._others[number].go_on()
        self._switch()
        self._share()
        self._publish()

    def _wanted(self) -> dict[int, Role]:
        """What should run beside the version in service."""
        if self._record is None:
            return {}
        wanted: dict[int, Role] = {}
        before = self._others.get(self._record.previous or -1)
        if before is not None and self._clock() < before.kept_until:
            wanted[before.number] = Role.STANDBY
        if self._record.candidate is not None and self._candidates:
            wanted[self._record.candidate] = Role.CANDIDATE
        if not self._should_serve(self._in_service):
            wanted[self._record.serving] = Role.STANDBY  # until it is ready
        return wanted

    def _should_serve(self, running: Running) -> bool:
        return self._record is None or (running.number == self._record.serving and self._is_of_record(running))

    def _is_of_record(self, running: Running) -> bool:
        """Whether it runs what the record means by its number: the files may have been others when it began."""
        return running.server is None or self._digest(running.number) in ("", running.server.model_sha256)

    def _digest(self, number: int) -> str:
        events = self._record.events if self._record is not None else ()
        found = [event.digests["model.onnx"] for event in events if event.version == number and event.digests]
        return found[-1] if found else ""

    def _may_start(self, number: int) -> bool:
        """A candidate that has failed has; what should serve is tried again and again."""
        failed = self._given_up.get(number)
        if failed is None or self._record is None:
            return True
        delay = 0.0 if failed.step != self._record.step else DELAYS[min(failed.times, len(DELAYS)) - 1]
        return number == self._record.serving and self._clock() >= failed.at + delay

    def _running(self, number: int, role: Role) -> Running:
        opener = partial(self._opener, number if self._record is not None else None)
        return Running(number, role, opener, self._supervise, self._has_changed, self._digest(number))

    def _has_changed(self, running: Running) -> None:
        self._wake.set()
        self.changed()

    def _give_up(self, running: Running, failure: BaseException) -> None:
        reason = str(failure) or type(failure).__name__
        if not isinstance(failure, InputError | ServerError):
            logger.error("version %d failed", running.number, exc_info=failure)
        before, step = self._given_up.get(running.number), self._record.step if self._record else 0
        times = before.times + 1 if before is not None and before.step == step else 1
        self._given_up[running.number] = Failed(reason, self._clock(), step, times)
        if before is None or (before.reason, before.step) != (reason, step):
            self._say(f"version {running.number} does not run: {reason}; version {self._in_service.number} serves on")

    def _switch(self) -> None:
        """The version that should serve does, if it answers."""
        if self._record is None or self._should_serve(self._in_service):
            return
        fresh, old = self._others.get(self._record.serving), self._in_service
        if fresh is None or not fresh.ready:
            return
        del self._others[fresh.number]
        self._in_service = fresh
        fresh.take(Role.SERVING)
        kept = ""
        if old.number == self._record.previous and self._standby > 0:
            old.kept_until = self._clock() + self._standby
            old.take(Role.STANDBY)
            self._others[old.number] = old
            kept = f"; version {old.number} is kept for {self._standby:g} s"
        else:
            self._let_go(old)
        self._say(f"version {fresh.number} serves from now on{kept}")

    def _let_go(self, running: Running) -> None:
        self._leaving[running] = asyncio.create_task(self._end(running))

    async def _end(self, running: Running) -> None:
        """Its requests under way are answered first."""
        try:
            if (member := running.member) is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0 if running.failure is not None else member.limits.max_seconds):
                        await self.leave(member)
        finally:
            await running.end(ENDING)
        del self._leaving[running]

    def _share(self) -> None:
        """Whoever is not in service has the memory that the others leave."""
        left = self._memory_limit
        for running in self.running:
            running.bound(left)
            if left is not None:
                left = max(0, left - running.memory)

    def _publish(self) -> None:
        members = [running.member for running in (*self._others.values(), self._in_service) if running.member]
        found = {member.version: member for member in sorted(members, key=lambda member: member.version)}
        changed, self._members = found != dict(self._members), MappingProxyType(found)
        if changed:
            self.changed()


def _stamp(repository: Path) -> object:
    """Tells one record from every other, without reading it; None where there is none."""
    try:
        found = (repository / MODEL / ROLLOUTS / NOW / RECORD).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
