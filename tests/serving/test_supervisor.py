"""The supervisor over a server that does what a test says, in a time that passes as the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from serving.backend import Backend, Health, State
from serving.probe import ServerError
from serving.supervisor import DELAYS, LOOK_SECONDS, WINDOW, Supervisor
from upsnet.errors import InputError


class Time:
    """Seconds that pass at once, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._sleepers.append((self.now + seconds, asyncio.get_running_loop().create_future()))
            await self._sleepers[-1][1]

    async def run_until(self, end: Callable[[], bool], most: float = 1000.0) -> None:
        """Lets time pass until something is so."""
        most += self.now
        await settle()
        while not end():
            self._sleepers = [(at, future) for at, future in self._sleepers if not future.done()]
            assert self._sleepers, "nothing waits for the time to pass"
            self.now, future = min(self._sleepers, key=lambda sleeper: sleeper[0])
            assert self.now <= most, "too late"
            future.set_result(None)
            await settle()

    async def run(self, seconds: float) -> None:
        end = asyncio.ensure_future(self.sleep(seconds))
        await self.run_until(end.done, seconds)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class FakeServer:
    """Healthy, until a test changes it."""

    grpc_target, http_socket, metrics_socket, model_sha256 = "unix:g", Path("h"), Path("m"), "abc"

    def __init__(self, time: Time) -> None:
        self.time = time
        self.launches: list[float] = []
        self.ends: list[float] = []
        self.probes = self.count = 0
        self.broken: str | None = None  # what a test inference says
        self.hangs = self.works_meanwhile = False
        self.start_fails = False
        self.held = 100
        self.dead: asyncio.Future[str] | None = None

    async def launch(self) -> None:
        self.launches.append(self.time.now)
        self.dead = asyncio.get_running_loop().create_future()
        self.broken, self.hangs, self.held = None, False, 100
        if self.start_fails:
            self.dead.set_result("it does not want to")

    async def probe(self) -> None:
        self.probes += 1
        if self.start_fails or self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.broken:
            raise ServerError(self.broken)

    async def answers(self) -> int:
        self.count += self.works_meanwhile
        return self.count

    async def death(self) -> str:
        assert self.dead is not None
        return await asyncio.shield(self.dead)

    async def end(self, seconds: float) -> None:
        self.ends.append(seconds)

    def memory(self) -> dict[str, int]:
        return {"server": self.held, "upsnet": self.held}

    def last_words(self) -> str:
        return "its log says: nothing"

    def die(self, reason: str) -> None:
        assert self.dead is not None
        self.dead.set_result(reason)


class World:
    def __init__(self, **options: Any) -> None:
        self.time = Time()
        self.server = FakeServer(self.time)
        self.told: list[Health] = []
        self.supervisor = Supervisor(
            self.server, changed=self.told.append, sleep=self.time.sleep, clock=self.time.clock, **options
        )

    @property
    def states(self) -> list[str]:
        return [str(health.state) for health in self.told]

    def is_ready(self) -> bool:
        return self.supervisor.health.state == State.READY


def play(scene: Callable[[World], Coroutine[Any, Any, None]], **options: Any) -> World:
    async def run() -> World:
        world = World(**options)
        await scene(world)
        await world.supervisor.stop()
        return world

    return asyncio.run(run())


def test_states_in_order() -> None:
    async def scene(world: World) -> None:
        backend: Backend = world.supervisor
        assert backend.health.state == State.STARTING and backend.health.reasons
        waiting = asyncio.ensure_future(backend.wait_until_ready())
        await settle()
        assert not waiting.done()
        await world.supervisor.start()
        await waiting
        assert backend.health.reasons == () and backend.health.restarts == 0
        world.server.die("the process of the model upsnet has ended")
        await world.time.run_until(lambda: world.supervisor.health.restarts == 1)
        await world.time.run_until(world.is_ready)
        world.supervisor.drain("8 s for requests under way")
        await world.supervisor.wait_until_ready()  # what was accepted is still sent to the server
        world.server.broken = "failed"
        await world.time.run_until(lambda: len(world.server.launches) == 3)  # which is kept alive for that
        assert world.supervisor.health.state == State.DRAINING

    world = play(scene)
    assert world.states == ["ready", "degraded", "ready", "draining", "stopped"]
    assert world.told[1].reasons == ("the process of the model upsnet has ended; it is started again now",)
    assert world.told[3].reasons == ("8 s for requests under way",)
    assert world.told[2].model_sha256 == "abc"


def test_first_start_that_fails_is_not_tried_again() -> None:
    async def scene(world: World) -> None:
        world.server.start_fails = True
        with pytest.raises(InputError, match=r"^the Triton server did not start: it does not want to$"):
            await world.supervisor.start()
        assert world.server.ends  # nothing is left of it

    assert len(play(scene).server.launches) == 1


def test_first_start_that_hangs_is_ended() -> None:
    async def scene(world: World) -> None:
        world.server.hangs = True
        launch = world.server.launch

        async def launch_and_hang() -> None:
            await launch()
            world.server.hangs = True

        world.server.launch = launch_and_hang  # type: ignore[method-assign]
        start = asyncio.ensure_future(world.supervisor.start())
        await world.time.run_until(start.done)
        with pytest.raises(InputError, match=r"did not start: no answer within 7 s; its log says: nothing$"):
            await start

    assert play(scene, start_timeout=7).time.now == 7


def test_back_off_and_its_end() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        world.server.start_fails = True
        world.server.die("gone")
        await world.time.run_until(lambda: len(world.server.launches) == 10)
        starts = world.server.launches[1:]
        assert [b - a for a, b in zip([0.0, *starts], starts, strict=False)] == [*DELAYS, 30, 30]
        assert "it is started again in 30 s" in world.supervisor.health.reasons[0]
        assert "did not start: it does not want to" in world.supervisor.health.reasons[0]
        world.server.start_fails = False
        await world.time.run_until(world.is_ready)
        await world.time.run(20)
        world.server.die("gone again")  # before it was healthy for a minute
        died = world.time.now
        await world.time.run_until(world.is_ready)
        assert world.time.now - died == 30
        await world.time.run(61)
        world.server.die("and again")
        died = world.time.now
        await world.time.run_until(world.is_ready)
        assert world.time.now == died

    play(scene)


def test_a_test_inference_every_two_seconds_and_at_once_on_suspicion() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        await settle()
        before = world.server.probes
        await world.time.run(21)
        assert world.server.probes == before + 10
        world.supervisor.suspect("an answer was UNAVAILABLE")
        await settle()
        assert world.server.probes == before + 11

    play(scene)


def test_errors_twice_restart_and_once_do_not() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        probe = world.server.probe
        answers = iter([ServerError("memory is short"), None])

        async def once() -> None:
            if (error := next(answers, None)) is not None:
                raise error
            await probe()

        world.server.probe = once  # type: ignore[method-assign]
        await world.time.run(4)
        assert world.states == ["ready", "degraded", "ready"] and len(world.server.launches) == 1
        assert world.told[1].reasons == ("memory is short",)
        world.server.probe = probe  # type: ignore[method-assign]
        world.server.broken = "a test inference of upsnet_photo failed"
        await world.time.run_until(lambda: len(world.server.launches) == 2, most=3)
        await world.time.run_until(world.is_ready)
        assert world.told[-2].reasons[0].startswith("a test inference of upsnet_photo failed; it is started again")

    play(scene)


def test_busy_is_not_dead() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        world.server.hangs = world.server.works_meanwhile = True
        await world.time.run(600)
        assert len(world.server.launches) == 1 and world.is_ready()
        world.server.works_meanwhile = False
        await world.time.run_until(lambda: len(world.server.launches) == 2, most=80)
        assert "has answered nothing for 30 s" in world.told[1].reasons[0]  # requests wait from then on
        assert "has answered nothing for 60 s" in world.told[2].reasons[0]

    play(scene)


def test_one_instance_of_two_that_fails() -> None:
    """They take turns, so every second test inference is answered."""

    async def scene(world: World) -> None:
        await world.supervisor.start()
        probe, turns = world.server.probe, iter([True, False] * 10)

        async def take_turns() -> None:
            world.server.broken = None if next(turns) else "it is not healthy"
            await probe()

        world.server.probe = take_turns  # type: ignore[method-assign]
        await world.time.run_until(lambda: len(world.server.launches) == 2, most=10)
        assert world.states[:4] == ["ready", "degraded", "ready", "degraded"]
        assert any("it is not healthy; it is started again now" in health.reasons for health in world.told)

    play(scene)


def test_failures_far_apart_are_bad_luck() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        probe, failed = world.server.probe, [0.0]

        async def now_and_then() -> None:
            if world.time.now - failed[-1] > WINDOW:
                failed.append(world.time.now)
                raise ServerError("memory is short")
            await probe()

        world.server.probe = now_and_then  # type: ignore[method-assign]
        await world.time.run(200)
        assert len(failed) > 5 and world.states.count("degraded") == len(failed) - 1
        assert len(world.server.launches) == 1 and world.is_ready()

    play(scene)


def test_a_server_that_hangs_does_not_even_count() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        await world.time.run(2)
        world.server.hangs = True

        async def count() -> int:
            return await asyncio.get_running_loop().create_future()

        world.server.answers = count  # type: ignore[method-assign]
        await world.time.run_until(lambda: len(world.server.launches) == 2, most=4 + 2 + LOOK_SECONDS)

    play(scene, hang_timeout=4)


def test_memory_limit() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        await world.time.run(2)
        assert world.supervisor.health.memory == {"server": 100, "upsnet": 100}
        world.server.held = 3 << 20
        await world.time.run_until(lambda: len(world.server.launches) == 2, most=3)
        assert world.server.ends == [10]  # requests under way are answered first
        assert "more than 5 MiB of memory (server 3 MiB, upsnet 3 MiB)" in world.told[1].reasons[0]

    play(scene, memory_limit=5 << 20)


def test_memory_limit_that_is_too_small() -> None:
    async def scene(world: World) -> None:
        said = r"hold more than 0 MiB of memory \(.*\) before the first request; give a larger --memory-limit$"
        with pytest.raises(InputError, match=said):
            await world.supervisor.start()

    world = play(scene, memory_limit=199)
    assert world.server.ends and world.states == ["stopped"]  # it was never ready


def test_stop_in_the_middle_of_a_start() -> None:
    async def scene(world: World) -> None:
        await world.supervisor.start()
        world.server.die("gone")
        world.server.start_fails = True
        await settle()
        await world.supervisor.stop()
        assert world.supervisor.health.state == State.STOPPED and world.supervisor.health.memory == {}
        launched = len(world.server.launches)
        await settle()
        assert len(world.server.launches) == launched

    play(scene)
