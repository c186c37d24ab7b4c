"""Keeps a Triton server serving: looks at it by test inference, and starts it again when it is dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from serving.backend import Health, State
from serving.probe import ServerError
from upsnet.errors import InputError

PROBE_EVERY = 2.0  # seconds, and at once where the front suspects something
LOOK_EVERY = 1.0  # seconds, at the memory
LOOKS = 4  # at the number of answers while a test inference waits for its own
LOOK_SECONDS = 1.0  # that one look may take
FAILURES = 2  # test inferences that fail within WINDOW: more than bad luck
WINDOW = 30.0  # seconds; the instances of a model take turns, so a broken one among them fails now and then
DELAYS = (0, 1, 2, 4, 8, 16, 30)  # seconds before a start, by the number of starts without a minute of health between
HEALTHY = 60.0
FINISH = 10.0  # seconds for requests under way where the server is restarted though it works

TOO_EARLY = " before the first request; give a larger --memory-limit"

Result = TypeVar("Result")


class Server(Protocol):
    """What is supervised."""

    grpc_target: str
    http_socket: Path
    metrics_socket: Path
    model_sha256: str

    async def launch(self) -> None: ...

    async def probe(self) -> None:
        """Returns when every model has answered, however long that takes. ServerError where one does not."""
        ...

    async def answers(self) -> int:
        """How many there were. ServerError."""
        ...

    async def death(self) -> str:
        """Returns when it is dead: why."""
        ...

    async def end(self, seconds: float) -> None:
        """Nothing is left of it after this, and it may be launched again."""
        ...

    def memory(self) -> dict[str, int]: ...

    def last_words(self) -> str: ...


class Supervisor:
    """The `Backend` of the front.

    start_timeout: seconds until a started server must answer. hang_timeout: seconds without any answer after which a
    server that should answer counts as dead. memory_limit: bytes of its processes together above which it is started
    anew. patience: how often it is started again without a minute of health between; None: for ever. These two may be
    changed at any time. changed is called with each new health.
    """

    def __init__(
        self,
        server: Server,
        *,
        start_timeout: float = 120.0,
        hang_timeout: float = 60.0,
        memory_limit: int | None = None,
        patience: int | None = None,
        changed: Callable[[Health], None] = lambda health: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.grpc_target = server.grpc_target
        self.http_socket, self.metrics_socket = server.http_socket, server.metrics_socket
        self._server = server
        self.memory_limit, self.patience = memory_limit, patience
        self._start_timeout, self._hang_timeout = start_timeout, hang_timeout
        self._changed, self._sleep, self._clock = changed, sleep, clock
        self._state, self._since = State.STARTING, time.time()
        self._reasons: tuple[str, ...] = ("the models have not answered yet",)
        self._memory: dict[str, int] = {}
        self._restarts = self._failures = 0
        self._healthy_since = 0.0
        self._ready, self._suspected = asyncio.Event(), asyncio.Event()
        self._guard: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health:
        return Health(
            self._state, self._reasons, self._since, self._restarts, self._server.model_sha256, dict(self._memory)
        )

    async def wait_until_ready(self) -> None:
        await self._ready.wait()

    def suspect(self, reason: str) -> None:
        self._suspected.set()

    async def start(self) -> None:
        """The first start. InputError where the server does not start: another try would not help."""
        try:
            await self._bring_up()
        except ServerError as error:
            raise InputError(str(error)) from error
        if trouble := self._too_much():
            raise InputError(trouble + TOO_EARLY)
        self._up()
        self._guard = asyncio.create_task(self._serve())

    async def wait(self) -> None:
        """Returns never; raises what the supervisor itself fails with. ServerError where its patience is at an end."""
        if self._guard is not None:
            await asyncio.shield(self._guard)

    def drain(self, reason: str) -> None:
        """From now on the health says so. The server is kept alive for what was accepted."""
        self._set(State.DRAINING, reason)

    async def stop(self, seconds: float = 0.0) -> None:
        """Ends the server; it has `seconds` for requests under way."""
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.wait([self._guard])
        await self._end(seconds, "the service has been stopped")

    async def _end(self, seconds: float, reason: str) -> None:
        self._ready.clear()
        await self._server.end(seconds)
        self._memory = {}
        self._set(State.STOPPED, reason)

    async def _serve(self) -> None:
        while True:
            reason, seconds = await first(self._death(), self._sickness(), self._greed())
            await self._restart(reason, seconds)

    async def _bring_up(self) -> None:
        """ServerError where the server does not answer in time; nothing is left of it then."""
        try:
            await self._server.launch()
            if trouble := await first(self._answer(), self._server.death(), self._late(), self._glutton()):
                raise ServerError(f"the Triton server did not start: {trouble}")
        except OSError as error:
            await self._server.end(0)
            raise ServerError(f"the Triton server did not start: {error.strerror}") from error
        except BaseException:  # Ctrl-C too: a server that never got ready must not stay
            await self._server.end(0)
            raise

    def _up(self) -> None:
        self._healthy_since = self._clock()
        self._set(State.READY)

    async def _answer(self) -> str:
        await self._server.probe()
        return ""

    async def _late(self) -> str:
        await self._sleep(self._start_timeout)
        return f"no answer within {self._start_timeout:g} s; {self._server.last_words()}"

    async def _glutton(self) -> str:
        return await self._hunger() + TOO_EARLY

    async def _restart(self, reason: str, seconds: float) -> None:
        if self._clock() - self._healthy_since >= HEALTHY:
            self._failures = 0
        while True:
            if self.patience is not None and self._failures >= self.patience:
                reason = f"{reason}; it has been started again {self._failures} times, and no more"
                await self._end(seconds, reason)
                raise ServerError(reason)
            delay = DELAYS[min(self._failures, len(DELAYS) - 1)]
            self._set(State.DEGRADED, f"{reason}; it is started again {f'in {delay} s' if delay else 'now'}")
            await self._server.end(seconds)
            await self._sleep(delay)
            self._failures += 1
            self._restarts += 1
            try:
                await self._bring_up()
            except ServerError as error:
                reason, seconds = str(error), 0
            else:
                return self._up()

    async def _death(self) -> tuple[str, float]:
        return await self._server.death(), 0.0

    async def _sickness(self) -> tuple[str, float]:
        """Returns when the models do not answer a test inference, or answer it with errors: why."""
        failures: list[float] = []
        while True:
            self._suspected.clear()
            try:
                if not await self._probe():
                    return f"the Triton server has answered nothing for {self._hang_timeout:g} s", 0.0
            except ServerError as error:
                now = self._clock()
                failures = [*(at for at in failures if now - at < WINDOW), now]
                self._set(State.DEGRADED, str(error))
                if len(failures) == FAILURES:
                    return str(error), 0.0
            else:
                self._set(State.READY)
                await first(self._sleep(PROBE_EVERY), self._suspected.wait())

    async def _probe(self) -> bool:
        """A test inference that waits as long as others are answered; False where nothing is. ServerError."""

        async def answered() -> bool:
            await self._server.probe()
            return True

        return await first(answered(), self._silence())

    async def _silence(self) -> bool:
        """Returns when the server has answered nothing for hang_timeout; it is degraded from half of that on."""
        before, since = -1, self._clock()
        half = self._hang_timeout / 2
        while (quiet := self._clock() - since) < self._hang_timeout:
            if quiet >= half:
                self._set(State.DEGRADED, f"the Triton server has answered nothing for {half:g} s")
            await self._sleep(min(self._hang_timeout / LOOKS, self._hang_timeout - quiet))
            answers = await first(self._answers(), self._no_answer())
            if answers > before >= 0:
                since = self._clock()
            before = max(before, answers)
        return False

    async def _answers(self) -> int:
        try:
            return await self._server.answers()
        except ServerError:
            return 0  # no progress

    async def _no_answer(self) -> int:
        await self._sleep(LOOK_SECONDS)
        return 0

    async def _greed(self) -> tuple[str, float]:
        return await self._hunger(), FINISH

    async def _hunger(self) -> str:
        """Returns when the processes hold more memory than they may: how much."""
        while not (trouble := self._too_much()):
            await self._sleep(LOOK_EVERY)
        return trouble

    def _too_much(self) -> str:
        self._memory = self._server.memory()
        if self.memory_limit is None or sum(self._memory.values()) <= self.memory_limit:
            return ""
        parts = ", ".join(f"{name} {size >> 20} MiB" for name, size in self._memory.items())
        return f"Triton's processes hold more than {self.memory_limit >> 20} MiB of memory ({parts})"

    def _set(self, state: State, *reasons: str) -> None:
        if state is State.READY:
            self._ready.set()
        elif state is not State.DRAINING:
            self._ready.clear()
        if self._state is State.DRAINING and state is not State.STOPPED:
            return  # whatever happens to the server meanwhile
        changed = (state, reasons) != (self._state, self._reasons)
        if state is not self._state:
            self._since = time.time()
        self._state, self._reasons = state, reasons
        if changed:
            self._changed(self.health)


async def first(*alternatives: Awaitable[Result]) -> Result:
    """The result of whichever ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in alternatives]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
