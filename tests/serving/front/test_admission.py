"""Whose turn it is, and who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.backend import State
from serving.front import admission as module
from serving.front.admission import Admission
from serving.front.refusal import Refused
from serving.limits import Limits
from serving.record import Outcome, Record
from tests.serving.front.fake import FakeBackend, until

LIMITS = Limits(max_pixels=1, max_photos=1, max_waiting=8, instances=2)  # four in flight


class Queue:
    """Requests that hold their turn until they are told to go."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.backend = FakeBackend(Path("."))
        self.admission = Admission(limits, self.backend)
        self.running: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.records: dict[str, Record] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, *names: str, seconds: float | None = None, size: int = 0) -> None:
        """Names of large ones are in capitals."""
        for name in names:
            self._leave[name] = asyncio.Event()
            self.records[name] = Record("grpc", "ModelInfer", bytes_in=size)
            self.tasks[name] = asyncio.create_task(self._request(name, seconds))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    async def go(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
            await self.tasks[name]
        await asyncio.sleep(0.01)

    async def _request(self, name: str, seconds: float | None) -> None:
        async with self.admission.turn(self.records[name], name.isupper(), seconds):
            self.running.append(name)
            await self._leave[name].wait()


async def refusal(task: asyncio.Task[None]) -> Refused:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value


def test_turns_come_in_order_and_one_that_leaves_makes_room() -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"abcdef")
        assert queue.running == list("abcd")
        assert (queue.admission.waiting, queue.admission.in_flight) == (2, 4)
        await queue.go("b")
        assert queue.running == list("abcde")
        await queue.go("a", "c", "d", "e", "f")
        assert (queue.admission.waiting, queue.admission.in_flight) == (0, 0)
        assert queue.records["f"].queued > 0 < queue.records["a"].served

    asyncio.run(main())


def test_large_requests_leave_an_instance_to_small_ones_and_are_not_starved() -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"aABCb")
        assert queue.running == ["a", "A", "b"]
        await queue.come(*"cde")
        assert queue.running == ["a", "A", "b", "c"]  # four are in flight
        await queue.go("A")
        assert queue.running[-1] == "B", "it has waited longest"
        await queue.go(*"abcdeBC")

    asyncio.run(main())


def test_large_requests_have_every_instance_where_no_small_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"ABC")
        assert queue.running == ["A", "B", "C"]
        await queue.come("a", *"DE")
        await queue.go("a")
        assert queue.running == ["A", "B", "C", "a"], "a small one has just been here"
        monkeypatch.setattr(module, "QUIET", 0.0)
        await queue.go("A")
        assert queue.running[-2:] == ["D", "E"]
        await queue.go(*"BCDE")

    asyncio.run(main())


def test_a_full_queue_says_when_to_come_again() -> None:
    async def main() -> None:
        queue = Queue(LIMITS._replace(max_waiting=2))
        await queue.come("first")
        await asyncio.sleep(0.5)
        await queue.go("first")
        await queue.come(*"abcdefg")
        refused = await refusal(queue.tasks["g"])
        assert refused.outcome == Outcome.BUSY
        assert refused.retry_after is not None and refused.retry_after >= 0.1
        assert refused.message == f"busy: 2 requests wait; retry after {refused.retry_after:g} s"
        await queue.go(*"abcdef")

    asyncio.run(main())


def test_a_queue_of_many_bytes_is_full() -> None:
    async def main() -> None:
        queue = Queue(LIMITS._replace(max_held=100))
        await queue.come("alone", size=200)
        assert queue.running == ["alone"], "one request is never too much"
        await queue.come("a", size=1)
        refused = await refusal(queue.tasks["a"])
        assert refused.outcome == Outcome.BUSY
        assert refused.message == "busy: other requests and answers hold 200 bytes; retry after 0.1 s"
        await queue.go("alone")
        await queue.come("b", "c", size=50)
        assert queue.running == ["alone", "b", "c"]
        await queue.go("b", "c")

    asyncio.run(main())


@pytest.mark.parametrize("leaves", [True, False])
def test_who_goes_while_it_waits_is_forgotten(leaves: bool) -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"abcd")
        await queue.come("e", seconds=60 if leaves else 0.05)
        await queue.come("f")
        if leaves:
            queue.tasks["e"].cancel()
            with pytest.raises(asyncio.CancelledError):
                await queue.tasks["e"]
        else:
            assert (await refusal(queue.tasks["e"])).outcome == Outcome.DEADLINE
        await queue.go("a")
        assert queue.running == list("abcdf")
        await queue.go(*"bcdf")
        assert (queue.admission.waiting, queue.admission.in_flight) == (0, 0)

    asyncio.run(main())


def test_a_turn_that_comes_as_its_request_goes_is_given_on() -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"abcdef")
        queue._leave["a"].set()
        await asyncio.sleep(0)  # a has ended, and e has a turn that it does not know of yet
        queue.tasks["e"].cancel()
        await until(lambda: "f" in queue.running)
        await queue.go(*"bcdf")
        assert (queue.admission.waiting, queue.admission.in_flight) == (0, 0)

    asyncio.run(main())


def test_requests_wait_while_the_server_restarts() -> None:
    async def main() -> None:
        queue = Queue()
        queue.backend.set(State.DEGRADED, "it was killed")
        await queue.come("a")
        assert queue.running == []
        queue.backend.set(State.READY)
        await until(lambda: queue.running == ["a"])
        await queue.go("a")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("seconds", "since", "count"), [(0.05, 0.0, 1), (None, -60.0, 1), (0.05, 0.0, 6)]
)  # its own deadline; a server that has been away for long; in the queue behind those that wait
def test_a_server_that_does_not_come_back_is_told_with_its_reasons(
    seconds: float | None, since: float, count: int
) -> None:
    async def main() -> None:
        queue = Queue()
        queue.backend.set(State.DEGRADED, "it was killed", "3 restarts", since=time.time() + since)
        names = "abcdef"[:count]
        await queue.come(*names, seconds=seconds)
        for name in names:
            refused = await refusal(queue.tasks[name])
            assert refused.outcome == Outcome.UNAVAILABLE
            assert refused.message == "the server is degraded: it was killed; 3 restarts; retry later"
        assert (queue.admission.waiting, queue.admission.in_flight) == (0, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "drain", [lambda queue: queue.admission.drain(), lambda queue: queue.backend.set(State.DRAINING)]
)
def test_draining_refuses_new_ones_and_serves_those_that_wait(drain: Callable[[Queue], None]) -> None:
    async def main() -> None:
        queue = Queue()
        await queue.come(*"abcde")
        drain(queue)
        await queue.come("f")
        refused = await refusal(queue.tasks["f"])
        assert refused.outcome == Outcome.UNAVAILABLE and "draining" in refused.message
        queue.backend.set(State.READY)
        await queue.go(*"abcde")
        assert queue.running == list("abcde")

    asyncio.run(main())


def test_an_error_inside_a_turn_leaves_its_place() -> None:
    async def main() -> None:
        queue = Queue()
        with pytest.raises(TimeoutError):
            async with queue.admission.turn(Record("grpc", "ModelInfer"), False, None):
                raise TimeoutError
        assert (queue.admission.waiting, queue.admission.in_flight) == (0, 0)

    asyncio.run(main())


def test_the_instances_are_those_of_the_model_repository() -> None:
    for model in ("upsnet", "upsnet_photo"):
        config = (Path(__file__).parents[3] / f"triton_repo/{model}/configs/cpu.pbtxt").read_text()
        assert f"count: {LIMITS.instances} kind: KIND_CPU" in config
