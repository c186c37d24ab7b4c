"""What the front does for a canary: it chooses, hands over, and waits for nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.backend import Member, Role, State
from serving.front import canary as module
from serving.front.canary import BUSY, LARGE, Canary
from serving.front.requests import Asked
from serving.front.sampling import Sampling
from serving.limits import Limits
from serving.record import Record
from serving.rollouts import lease as lease_module
from serving.rollouts.lease import Lease, give_up, lease_path, read_lease, renew
from serving.rollouts.tally import Figures
from tests.serving.front.fake import FakeBackend, until
from upsnet.errors import InputError

ASKED = Asked("id", 1, 100, False, ())
# Stand-ins for serving/front/mirror.py: they read a job and its bytes, and answer as their name says.
READ = (
    "import sys, json, time\nfor line in sys.stdin.buffer:\n body = sys.stdin.buffer.read(json.loads(line)['size'])\n "
)
SAY = "print(json.dumps({found}), flush=True)"
ANSWER = "{'seconds': 0.1}"
AGREES = READ + SAY.format(found=f"dict(serving={ANSWER}, candidate={{'seconds': 0.2}}, photos=[[4, len(body)]])")
HANGS = READ + "time.sleep(60)"
DIES = READ + "sys.exit(3)"
RUBBISH = READ + "print('no JSON', flush=True)"
FAILS = READ + SAY.format(
    found=f"dict(serving={ANSWER}, candidate={{'seconds': 9, 'late': True, 'error': 'no answer within 9 s'}})"
)


class Bench:
    def __init__(self, folder: Path, script: str, share: float) -> None:
        self.path = lease_path(folder)
        self.path.parent.mkdir(parents=True)
        self.backends = {}
        for version in (1, 2):
            (folder / f"v{version}").mkdir()
            self.backends[version] = FakeBackend(folder / f"v{version}")
        roles = {1: Role.SERVING, 2: Role.CANDIDATE}
        limits = Limits(max_pixels=1 << 20)
        self.members = {n: Member(n, roles[n], each, limits) for n, each in self.backends.items()}
        self.fleet: Any = SimpleNamespace(serving=self.members[1], members=dict(self.members), failed={}, rollouts="x")
        self.registry = CollectorRegistry()
        self.lease = Lease(version=2, share=share, until=0, deadline=1)
        self.canary = Canary(self.fleet, self.path, self.registry, chance=lambda: 0.5, command=("-c", script))
        self.sampling = Sampling(self.canary)

    def pass_by(self, version: int = 1, body: bytes = b"1234", **changes: Any) -> None:
        record = Record("grpc", "ModelInfer", request_id=f"r{len(body)}", model="upsnet_photo")
        self.sampling.answered(version, record, ASKED._replace(**changes), body)

    @property
    def figures(self) -> Figures:
        found = self.sampling.figures()
        assert found is not None
        return Figures.model_validate(found)

    async def begin(self) -> None:
        renew(self.path, self.lease)
        await until(lambda: (self.sampling.figures() or {}).get("lease") == self.lease.id and self.figures.active)

    def counted(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("upsnet_canary_requests_total", {"outcome": outcome})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)

    def run(steps: Callable[[Bench], Awaitable[None]], script: str = AGREES, share: float = 1.0) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, script, share)
            await bench.sampling.start()
            try:
                await steps(bench)
            finally:
                await bench.sampling.stop()
            assert bench.canary._process is None

        asyncio.run(main())

    return run


def test_nothing_is_mirrored_without_a_lease_and_what_was_is_told_after_it(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        bench.pass_by()
        assert bench.sampling.figures() is None
        await bench.begin()
        bench.pass_by()
        await until(lambda: bench.figures.photos == 1)
        give_up(bench.path, bench.lease)
        await until(lambda: not bench.figures.active and bench.canary._process is None)
        bench.pass_by()
        assert (bench.figures.seen, bench.figures.mirrored, bench.figures.photos) == (1, 1, 1)

    run(steps)


def test_the_figures(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        for count, body in enumerate((b"1234", b"12"), 1):
            bench.pass_by(body=body)
            await until(lambda: bench.figures.photos == count)  # noqa: B023
        found = bench.figures
        assert (found.version, found.serving, found.share, found.trouble) == (2, 1, 1.0, "")
        assert (found.identical, found.least_identical, found.latency_ratio) == (0.75, 0.5, 2.0)
        assert found.serving_ms is not None and (found.serving_ms.p50, found.serving_ms.p95) == (100, 100)
        assert [(each.name, each.identical) for each in found.requests] == [("r2", 0.5)]
        assert bench.counted("compared") == 2 and bench.counted("failed") == 0

    run(steps)


def test_one_at_a_time_and_the_rest_is_counted(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        begun = time.monotonic()
        for _ in range(1000):
            bench.pass_by(body=bytes(8 << 20))
        assert time.monotonic() - begun < 30  # none of it waits for the process, which hangs
        assert bench.figures.seen == 1000 and bench.figures.skipped == {BUSY: 999}
        assert bench.counted("skipped") == 999

    run(steps, script=HANGS)


def test_the_share_the_version_and_the_size_choose(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.pass_by(version=2)  # its caller named the candidate
        bench.pass_by(large=True)
        assert bench.figures.seen == 1 and bench.figures.skipped == {LARGE: 1}
        bench.lease.share = 0.5  # the chance is 0.5, always
        renew(bench.path, bench.lease)
        await until(lambda: bench.canary._lease is not None and bench.canary._lease.share == 0.5)
        bench.pass_by()
        assert bench.figures.seen == 2 and bench.figures.mirrored == 0 and bench.canary._mirroring is None

    run(steps)


@pytest.mark.parametrize(("script", "why"), [(DIES, "its process has ended"), (RUBBISH, "validation error")])
def test_a_process_that_dies_is_started_again(run: Any, script: str, why: str) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        for count in (1, 2):
            bench.pass_by()
            await until(lambda: sum(bench.figures.skipped.values()) == count)  # noqa: B023
        assert all(why in each for each in bench.figures.skipped) and bench.figures.failed == {}

    run(steps, script=script)


def test_a_process_that_hangs_is_ended(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_SECONDS", -1.8)  # beyond twice the deadline of 1 s

    async def steps(bench: Bench) -> None:
        await bench.begin()
        pid = bench.canary._process.pid if bench.canary._process else 0
        bench.pass_by(body=bytes(4 << 20))  # more than a pipe takes
        await until(lambda: bench.figures.skipped != {})
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(steps, script="import time; time.sleep(60)")


def test_the_next_canary_does_not_wait_for_what_the_last_one_asked(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.pass_by()
        pid = bench.canary._process.pid if bench.canary._process else 0
        assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
        give_up(bench.path, bench.lease)
        bench.lease = Lease(version=2, share=1, until=0, deadline=500)
        await bench.begin()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert bench.canary._mirroring is None and bench.figures.skipped == {}
        bench.pass_by()
        assert bench.canary._mirroring is not None and bench.figures.skipped == {}

    run(steps, script=HANGS)


def test_a_candidate_that_is_late_is_said_so(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.pass_by()
        await until(lambda: bench.figures.mirrored == 1)
        found = bench.figures
        assert found.failed == {"candidate": 1} and found.late == {"candidate": 1} and found.photos == 0
        assert found.said == {"candidate: no answer within 9 s": 1} and bench.counted("late") == 1

    run(steps, script=FAILS)


def test_what_is_in_its_way_is_told(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.backends[2].set(State.DEGRADED, "it was killed", restarts=2)
        await until(lambda: bench.figures.trouble == "version 2 is degraded: it was killed")
        bench.pass_by()
        assert bench.figures.skipped == {"a version was not ready": 1} and bench.figures.restarts == 2
        del bench.fleet.members[2]
        await until(lambda: bench.figures.trouble == "version 2 is not run by this service")
        bench.pass_by()
        bench.fleet.failed[2] = "it died 5 times"
        await until(lambda: bench.figures.trouble == "version 2 does not run: it died 5 times")
        assert bench.figures.mirrored == 0

    run(steps)


def test_a_candidate_that_is_promoted_meanwhile_is_not_compared_with_itself(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.fleet.serving = bench.members[2]
        await until(lambda: bench.figures.trouble == "version 2 is in service itself")
        bench.pass_by(version=2)
        assert bench.figures.mirrored == 0 and bench.canary._mirroring is None

    run(steps)


def test_a_damaged_lease_is_none_and_harms_nobody(run: Any) -> None:
    async def steps(bench: Bench) -> None:
        await bench.begin()
        bench.path.write_text('{"version": 2, "share": 7, "until": 1e12}')
        await until(lambda: not bench.figures.active)
        assert "share" in bench.figures.trouble
        bench.pass_by()
        assert bench.figures.seen == 0

    run(steps)


def test_a_caller_learns_nothing_of_what_fails_here(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no")

    sampling = Sampling(SimpleNamespace(answered=broken))  # type: ignore[arg-type]
    sampling.answered(1, Record("grpc", "ModelInfer"), ASKED, b"")
    assert "could not be sampled" in caplog.text and sampling.figures() is None


def test_a_lease_ends_by_itself_and_belongs_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "canary.json"
    mine, other = (Lease(version=2, share=0.1, until=0) for _ in range(2))
    assert read_lease(path) is None
    renew(path, mine)
    assert read_lease(path) == mine
    renew(path, mine)
    with pytest.raises(InputError, match="runs a canary of version 2"):
        renew(path, other)
    give_up(path, other)
    assert read_lease(path) == mine
    now = time.time()
    monkeypatch.setattr(lease_module.time, "time", lambda: now + 11)
    assert read_lease(path) is None
    renew(path, other)
    monkeypatch.setattr(lease_module.time, "time", lambda: now - 3600)  # the writer's clock is wrong
    assert read_lease(path) is None
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_lease(path)
    renew(path, mine)
    monkeypatch.undo()
