"""A few callers who ask on while something breaks: what became of each request, and when all was well again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from serving.load_test.asking import Server
from serving.load_test.questions import Answer, Question
from tests.serving.soak.service import Running

CALLERS = 4
DEADLINE = 60.0  # of a request
ANSWERS = 10  # before the fault, and after it until all counts as well
GUARD = 120.0


class Aftermath(NamedTuple):
    """Of one fault."""

    ended: Counter[str]  # how the requests ended that were under way when it happened, or came after it
    slowest: float  # seconds that one of these took
    recovered: float  # seconds until Triton ran again and answered


async def under_load(
    running: Running, questions: Sequence[Question], answers: Sequence[Answer], fault: Callable[[], object]
) -> Aftermath:
    """Asks, breaks something, and asks on until Triton has been restarted and answers. All that was asked has ended.

    AssertionError where an answer is wrong, or it is not well again in time.
    """
    over, good = asyncio.Event(), 0
    ended: list[tuple[float, float, str]] = []  # start, end, status

    async def call(server: Server, number: int) -> None:
        nonlocal good
        while not over.is_set():
            number, start = number + 1, time.monotonic()
            try:
                answer = await server.ask(questions[number % len(questions)].message)
                assert answer == answers[number % len(questions)], "a wrong answer"
                status, good = "OK", good + 1
            except grpc.aio.AioRpcError as error:
                status = error.code().name
                await asyncio.sleep(0.05)
            ended.append((start, time.monotonic(), status))

    async def enough() -> None:
        wanted = good + ANSWERS
        while good < wanted:
            await asyncio.sleep(0.02)

    server = Server(running.address("grpc"), connections=2, deadline=DEADLINE)
    async with asyncio.timeout(GUARD), server, asyncio.TaskGroup() as tasks:
        for number in range(CALLERS):
            tasks.create_task(call(server, number))
        await enough()
        restarts = (await asyncio.to_thread(running.health))["restarts"]
        moment = time.monotonic()
        fault()
        while (health := await asyncio.to_thread(running.health))["restarts"] == restarts or not _ready(health):
            await asyncio.sleep(0.05)
        recovered = time.monotonic() - moment
        await enough()
        over.set()
    after = [each for each in ended if each[1] > moment]
    return Aftermath(Counter(status for _, _, status in after), max(end - start for start, end, _ in after), recovered)


def _ready(health: dict[str, object]) -> bool:
    return health["state"] == "ready"
