"""The versions that run: what follows from each step of a roll-out, over servers that do what a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving.backend import Member, State
from serving.fleet import VersionFleet
from serving.limits import Limits
from serving.repository import check_parts, deploy
from serving.rollouts import steps
from serving.rollouts.record import read_record
from serving.running import PATIENCE, Opened
from serving.service import News
from serving.supervisor import Supervisor
from tests.serving.conftest import Exported, stand_in
from upsnet.errors import InputError
from upsnet.files import read_json, sha256

GUARD = 20.0  # seconds until a test counts as failed


class FakeServer:
    """Answers at once, until a test wants something else."""

    grpc_target, http_socket, metrics_socket = "unix:g", Path("h"), Path("m")
    models: tuple[str, ...] = ("upsnet",)
    engine, pid, expendable = "a fake", 1, False

    def __init__(self, number: int | None, digest: str, starts: bool) -> None:
        self.number, self.model_sha256, self.starts = number, digest, starts
        self.launches = self.ends = 0
        self.closed = False
        self.held = 100
        self.dead: asyncio.Future[str] | None = None

    async def launch(self) -> None:
        self.launches += 1
        self.dead = asyncio.get_running_loop().create_future()
        if not self.starts:
            self.dead.set_result("it does not want to")

    async def probe(self) -> None:
        if not self.starts:
            await asyncio.get_running_loop().create_future()

    async def answers(self) -> int:
        return 0

    async def death(self) -> str:
        assert self.dead is not None
        return await asyncio.shield(self.dead)

    async def end(self, seconds: float) -> None:
        self.ends += 1

    def memory(self) -> dict[str, int]:
        return {"server": self.held}

    def last_words(self) -> str:
        return "its log says: nothing"

    def die(self) -> None:
        assert self.dead is not None
        self.dead.set_result("it has died")


class World:
    """A repository, and the fleet that follows it."""

    def __init__(self, exported: Exported, folder: Path, **options: Any) -> None:
        self.parts = check_parts(exported.model, exported.manifest_path)
        self.repository = deploy(exported.model, exported.manifest_path, folder / "repository")
        self.servers: list[FakeServer] = []
        self.broken: set[int] = set()  # versions that do not start
        self.left: list[Member] = []
        self.lines: list[str] = []
        supervise = partial(Supervisor, sleep=self.sleep)
        self.fleet = VersionFleet(
            self.repository, self.open, supervise, look_every=0.01, say=self.lines.append, **options
        )
        self.fleet.leave = self.leave

    @staticmethod
    async def sleep(seconds: float) -> None:
        """A hundred times as fast."""
        await asyncio.sleep(seconds / 100)

    def open(self, number: int | None) -> Opened:
        place = self.repository / "upsnet" / str(number or 1) / "model.onnx"
        server = FakeServer(number, sha256(place), number not in self.broken)
        self.servers.append(server)

        def close() -> None:
            server.closed = True

        return Opened(server, Limits(max_pixels=1), close)

    async def leave(self, member: Member) -> None:
        assert self.fleet.members.get(member.version) is not member
        self.left.append(member)

    @property
    def roles(self) -> dict[int, str]:
        return {number: str(member.role) for number, member in self.fleet.members.items()}

    def server(self, number: int) -> FakeServer:
        return next(server for server in reversed(self.servers) if (server.number or 1) == number)

    def stage(self) -> int:
        return steps.stage(self.repository, self.parts).candidate or 0

    def promote(self) -> None:
        steps.promote(self.repository, read_record(self.repository), {}, 1.0)

    async def kill(self, number: int) -> None:
        """As soon as it has come up."""
        server, launches = self.server(number), self.server(number).launches
        await self.until(self.all_ready)
        server.die()
        await self.until(lambda: server.launches > launches or number in self.fleet.failed)

    async def until(self, so: Callable[[], object]) -> None:
        end = time.monotonic() + GUARD
        while not so():
            assert time.monotonic() < end, (self.roles, self.fleet.failed, self.lines)
            await asyncio.sleep(0.005)

    async def until_roles(self, **roles: str) -> None:
        wanted = {int(name[1:]): role for name, role in roles.items()}
        await self.until(lambda: self.roles == wanted and self.all_ready())

    def all_ready(self) -> bool:
        return all(member.backend.health.state is State.READY for member in self.fleet.members.values())


Play = Callable[..., World]


@pytest.fixture
def play(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a scene over a fleet that has been started, and ends it."""
    monkeypatch.setattr("serving.fleet.DELAYS", (0, 0.1))

    def run(scene: Callable[[World], Coroutine[Any, Any, None]], managed: bool = False, **options: Any) -> World:
        async def main() -> World:
            world = World(exported, tmp_path, **options)
            if managed:
                world.stage()
                steps.discard(world.repository)
            await world.fleet.open()
            try:
                await world.fleet.start()
                await scene(world)
            finally:
                await world.fleet.stop()
            return world

        world = asyncio.run(main())
        assert not [vars(server) for server in world.servers if not server.closed or server.ends < server.launches]
        return world

    return run


def test_a_repository_without_roll_outs_becomes_one_with_them(play: Play) -> None:
    async def scene(world: World) -> None:
        assert world.fleet.rollouts == "" and world.fleet.serving.version == 1
        before = world.fleet.serving
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        assert world.fleet.serving is before and world.fleet.members[1] is before  # it was not started anew
        assert world.fleet.rollouts == read_record(world.repository).id

    world = play(scene)
    assert [(server.number, server.launches) for server in world.servers] == [(None, 1), (2, 1)]


def test_promotion_and_rollback_are_a_switch(play: Play) -> None:
    async def scene(world: World) -> None:
        first = world.fleet.serving
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        second = world.fleet.members[2]
        assert world.server(2).expendable and not world.server(1).expendable
        world.promote()
        await world.until_roles(_1="standby", _2="serving")
        assert world.fleet.serving.backend is second.backend
        assert world.server(1).expendable and not world.server(2).expendable
        steps.rollback(world.repository)
        await world.until_roles(_1="serving")
        assert world.fleet.serving.backend is first.backend
        await world.until(lambda: world.server(2).closed)
        assert [member.version for member in world.left] == [2]

    world = play(scene)
    assert [server.launches for server in world.servers] == [1, 1]  # nothing was started for it
    assert world.lines[-2:] == [
        "version 2 serves from now on; version 1 is kept for 600 s",
        "version 1 serves from now on",
    ]


def test_the_version_before_is_kept_for_a_while(play: Play) -> None:
    async def scene(world: World) -> None:
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        world.promote()
        await world.until_roles(_1="standby", _2="serving")
        await world.until_roles(_2="serving")
        steps.rollback(world.repository)  # it is started, and serves when it answers
        await world.until_roles(_1="serving")

    world = play(scene, standby=0.2)
    assert [server.number for server in world.servers] == [None, 2, 1]


def test_requests_under_way_end_before_their_server(play: Play) -> None:
    async def scene(world: World) -> None:
        answered = asyncio.Event()

        async def leave(member: Member) -> None:
            await answered.wait()

        world.fleet.leave = leave
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        second = world.server(2)
        steps.discard(world.repository)
        await world.until_roles(_1="serving")
        await asyncio.sleep(0.05)
        assert not second.ends and not second.closed
        answered.set()
        await world.until(lambda: second.closed)

    play(scene)


def test_a_candidate_that_is_replaced(play: Play) -> None:
    async def scene(world: World) -> None:
        for _ in range(2):
            world.stage()
        await world.until_roles(_1="serving", _3="candidate")

    play(scene)


def test_a_candidate_that_does_not_start(play: Play) -> None:
    async def scene(world: World) -> None:
        world.broken.add(2)
        world.stage()
        await world.until(lambda: world.fleet.failed)
        assert world.fleet.failed == {2: "the Triton server did not start: it does not want to"}
        assert world.roles == {1: "serving"}
        await asyncio.sleep(0.2)  # it is not tried again
        world.stage()
        await world.until_roles(_1="serving", _3="candidate")
        assert not world.fleet.failed

    world = play(scene)
    assert [server.number for server in world.servers] == [None, 2, 3]
    assert "version 2 does not run: the Triton server did not start: it does not want to; version 1 serves on" in (
        world.lines
    )


def test_a_candidate_that_dies_again_and_again(play: Play) -> None:
    async def scene(world: World) -> None:
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        for _ in range(PATIENCE + 1):
            await world.kill(2)
        await world.until(lambda: world.fleet.failed)
        assert world.fleet.failed[2] == f"it has died; it has been started again {PATIENCE} times, and no more"
        assert world.roles == {1: "serving"} and world.server(1).launches == 1

    play(scene)


def test_a_version_that_does_not_start_replaces_none_that_answers(play: Play) -> None:
    """It is tried again; when it answers, it serves, as the record says."""

    async def scene(world: World) -> None:
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        world.broken |= {1, 2}
        world.promote()
        await world.until_roles(_1="standby", _2="serving")
        world.server(1).die()
        world.server(1).starts = False
        await world.until(lambda: world.roles == {2: "serving"})  # the standby has been given up
        steps.rollback(world.repository)
        await world.until(lambda: sum(server.number == 1 for server in world.servers) >= 3)
        await world.until(lambda: "did not start" in world.fleet.failed.get(1, ""))
        assert world.fleet.serving.version == 2
        world.broken.clear()
        await world.until_roles(_1="serving")
        assert not world.fleet.failed

    play(scene)


def test_without_candidates(play: Play) -> None:
    async def scene(world: World) -> None:
        world.stage()
        await world.until(lambda: world.fleet.rollouts)
        assert world.roles == {1: "serving"}
        world.promote()  # then it is none any more
        await world.until_roles(_1="standby", _2="serving")

    play(scene, candidates=False)


def test_memory_is_for_the_version_in_service_first(play: Play) -> None:
    async def scene(world: World) -> None:
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        world.server(1).held = 950
        await world.until(lambda: 2 in world.fleet.failed)
        assert "hold more than 0 MiB of memory" in world.fleet.failed[2]
        assert world.server(1).launches == 1

    play(scene, memory_limit=1000)


def test_files_that_were_others_when_the_service_began(play: Play, exported: Exported, tmp_path: Path) -> None:
    """What the record calls version 1 serves then, although a version 1 did before."""

    async def scene(world: World) -> None:
        before = world.fleet.serving
        other = tmp_path / "other"
        other.mkdir()
        stand_in(other / "model.onnx", exported.manifest.model_copy(update={"name": "other", "onnx_sha256": ""}))
        manifest = exported.manifest.model_copy(update={"name": "other", "onnx_sha256": sha256(other / "model.onnx")})
        manifest.save(other / "model.manifest.json")
        deploy(other / "model.onnx", other / "model.manifest.json", world.repository)
        await asyncio.sleep(0.05)
        assert world.fleet.serving is before
        world.stage()
        await world.until(lambda: world.fleet.serving.backend is not before.backend)
        await world.until_roles(_1="serving", _2="candidate")
        assert world.fleet.serving.backend.health.model_sha256 == manifest.onnx_sha256
        await world.until(lambda: before in world.left)

    play(scene)


def test_a_model_file_that_is_not_the_one_that_was_staged(play: Play) -> None:
    async def scene(world: World) -> None:
        opened = world.open

        def damage(number: int | None) -> Opened:
            found = opened(number)
            world.servers[-1].model_sha256 = "0" * 64
            return found

        world.fleet._opener = damage
        world.stage()
        await world.until(lambda: 2 in world.fleet.failed)
        assert world.fleet.failed[2] == "the model.onnx of version 2 is not the one that was staged; stage it again"

    play(scene)


def test_a_record_that_cannot_be_read(play: Play, tmp_path: Path) -> None:
    """What was so last goes on, and that is said once."""

    async def scene(world: World) -> None:
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        rollouts = world.repository / "upsnet/rollouts"
        record = rollouts / "now/record.json"
        whole = record.read_text()
        record.write_text("{")
        await world.until(lambda: any("cannot be followed" in line for line in world.lines))
        await asyncio.sleep(0.05)
        record.write_text(whole)
        world.promote()
        await world.until_roles(_1="standby", _2="serving")
        world.repository.rename(tmp_path / "away")
        await asyncio.sleep(0.05)
        assert world.roles == {1: "standby", 2: "serving"}

    assert sum("cannot be followed" in line for line in play(scene).lines) == 1


def test_a_service_that_starts_on_a_repository_with_roll_outs(play: Play) -> None:
    async def scene(world: World) -> None:
        await world.until_roles(_1="serving")

    assert [server.number for server in play(scene, managed=True).servers] == [1]


def test_the_version_in_service_that_does_not_start(exported: Exported, tmp_path: Path) -> None:
    async def main() -> None:
        world = World(exported, tmp_path)
        world.stage()
        world.broken.add(1)
        await world.fleet.open()
        with pytest.raises(InputError, match=r"^the Triton server did not start: it does not want to$"):
            await world.fleet.start()
        await world.fleet.stop()
        assert all(server.closed for server in world.servers)

    asyncio.run(main())


def test_the_version_in_service_is_restarted_for_ever(play: Play) -> None:
    async def scene(world: World) -> None:
        for _ in range(PATIENCE + 3):
            await world.kill(1)
        await world.until(lambda: world.server(1).launches == PATIENCE + 4)

    play(scene)


def test_what_people_are_told(play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of each version what has changed, and no more; the state file tells all of it."""
    lines: list[str] = []
    monkeypatch.setattr("serving.service.say", lines.append)

    async def scene(world: World) -> None:
        world.fleet._say = lines.append
        news = News(world.fleet, tmp_path / "state.json")
        world.fleet.changed = news.changed
        world.stage()
        await world.until_roles(_1="serving", _2="candidate")
        world.promote()
        await world.until_roles(_1="standby", _2="serving")
        steps.rollback(world.repository)
        await world.until_roles(_1="serving")
        await world.kill(1)
        await world.until(world.all_ready)
        news.changed()
        told = read_json(tmp_path / "state.json")
        assert (told["state"], told["serving"], told["rollouts"]) == ("ready", 1, world.fleet.rollouts)
        assert told["versions"] == {"1": {"role": "serving", "state": "ready", "reasons": [], "triton_pid": 1}}

    play(scene)
    assert lines == [
        "version 2 (candidate): starting: the models have not answered yet",
        "version 2 (candidate): ready: the models answer",
        "version 2 serves from now on; version 1 is kept for 600 s",
        "version 1 serves from now on",
        "degraded: it has died; it is started again now",
        "ready: the models answer again",
    ]
