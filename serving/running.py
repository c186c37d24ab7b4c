"""The server of one version, from the copy of its files to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from serving.backend import Health, Member, Role, State
from serving.limits import Limits
from serving.supervisor import Server, Supervisor
from upsnet.errors import InputError

PATIENCE = 3  # restarts, without a minute of health between, of a version that is not in service


class VersionServer(Server, Protocol):
    expendable: bool  # whether it goes before others where the machine's memory ends
    models: tuple[str, ...]

    @property
    def engine(self) -> str: ...

    @property
    def pid(self) -> int | None: ...


class Opened(NamedTuple):
    """A version's files, copied, and what may be launched with them."""

    server: VersionServer
    limits: Limits
    close: Callable[[], None]  # removes the copy, when the server has ended


class Running:
    """A version that runs, or is on the way to it.

    opener copies its files, in a thread of its own; InputError. supervise(server, changed=...) makes its supervisor.
    digest: of the ONNX file that was staged; empty where nobody knows. changed is called when anything about it has.
    """

    def __init__(
        self,
        number: int,
        role: Role,
        opener: Callable[[], Opened],
        supervise: Callable[..., Supervisor],
        changed: Callable[[Running], None],
        digest: str = "",
    ) -> None:
        self.number, self.role = number, role
        self.member: Member | None = None  # None until its files have been copied
        self.server: VersionServer | None = None  # likewise
        self.kept_until = 0.0  # of a standby: by the clock of whoever keeps it
        self._supervisor: Supervisor | None = None
        self._limits: Limits
        self._close: Callable[[], None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._opener, self._supervise, self._changed, self._digest = opener, supervise, changed, digest
        self._started = False
        self._life: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health | None:
        """None until its files have been copied."""
        return self._supervisor.health if self._supervisor is not None else None

    @property
    def ready(self) -> bool:
        return self.health is not None and self.health.state is State.READY

    @property
    def memory(self) -> int:
        """Resident bytes of its processes."""
        return sum(self.health.memory.values()) if self.health is not None else 0

    @property
    def failure(self) -> BaseException | None:
        """What has ended it: InputError where it did not start, ServerError where it was started too often."""
        if self._life is None or not self._life.done() or self._life.cancelled():
            return None
        return self._life.exception()

    def take(self, role: Role) -> None:
        """That is its role from now on, and it is treated so."""
        self.role = role
        if self.server is not None and self._supervisor is not None:
            self.server.expendable = role is not Role.SERVING
            self._supervisor.patience = None if role is Role.SERVING else PATIENCE
            self.member = Member(self.number, role, self._supervisor, self._limits)

    def bound(self, memory: int | None) -> None:
        """Its processes may hold so many bytes."""
        if self._supervisor is not None:
            self._supervisor.memory_limit = memory

    def drain(self, reason: str) -> None:
        if self._supervisor is not None:
            self._supervisor.drain(reason)

    async def open(self) -> None:
        """Copies its files. InputError."""
        copying = asyncio.ensure_future(asyncio.to_thread(self._opener))
        try:
            opened = await asyncio.shield(copying)
        except asyncio.CancelledError:
            with suppress(Exception):  # nobody wants to know any more
                (await copying).close()
            raise
        self.server, self._limits, self._close = opened
        if self._digest not in ("", opened.server.model_sha256):
            raise InputError(f"the model.onnx of version {self.number} is not the one that was staged; stage it again")
        self._supervisor = self._supervise(opened.server, changed=lambda health: self._changed(self))
        self.take(self.role)

    async def start(self) -> None:
        """The first start. InputError."""
        assert self._supervisor is not None
        await self._supervisor.start()
        self._started = True

    def go_on(self) -> None:
        """From here it goes its way by itself; `failure` tells where that has ended."""
        self._life = asyncio.create_task(self._live())
        self._life.add_done_callback(lambda _: self._changed(self))

    async def _live(self) -> None:
        if self.server is None:
            await self.open()
            self._changed(self)
        if not self._started:
            await self.start()
        assert self._supervisor is not None
        await self._supervisor.wait()

    async def end(self, seconds: float = 0.0) -> None:
        """Nothing is left of it after this; it has `seconds` to end by itself. May be called again."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        try:
            if self._supervisor is not None:
                await self._supervisor.stop(seconds)
        finally:
            if self._close is not None and self._closing is None:
                self._closing = asyncio.create_task(asyncio.to_thread(self._close))
            if self._closing is not None:
                await asyncio.shield(self._closing)
