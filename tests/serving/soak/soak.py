"""Good and hostile requests at once, for as long as is wanted: no answer may be wrong, and the server may not grow.

python -m tests.serving.soak --seconds 600
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from serving.load_test.asking import Questions, Server, ask_alone
from serving.load_test.in_process import differing
from serving.load_test.loops import OK
from serving.load_test.questions import Question, photo_question, tensor_question
from serving.load_test.report import REFUSALS
from tests.serving.soak import bombs
from tests.serving.soak.footprint import Footprint
from tests.serving.soak.hostile import ACTIONS, Action, Harm, Target
from upsnet.errors import InputError
from upsnet.geometry import collate, to_network
from upsnet.machine import machine_facts
from upsnet.photos import read_photo
from upsnet.report import Report
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

HOSTS = 3  # hostile clients at once
CALLERS = {"photos": 2, "batches of photos": 1, "tensors": 2}  # good ones, by what they send
WARM_UP = 0.25  # of the time: memory is compared after it
ACTION_SECONDS = 90.0


class Memory(BaseModel):
    """At one second: MiB of each process of the service, and of its regions of shared memory together."""

    second: float
    mib: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.mib.values())


class SoakReport(Report):
    """soak.json."""

    machine: dict[str, str | int]
    seconds: float
    good: dict[str, dict[str, int]]  # how the good requests ended, by what they were
    hostile: dict[str, dict[str, int]]  # how the hostile ones ended, by what they did
    harms: list[str]  # what a server may not do, and did
    said: list[str]  # of good requests that failed
    restarts: int
    memory: list[Memory]
    growth: float  # of the memory, from after the warm-up to the end

    @property
    def faults(self) -> list[str]:
        """Empty where all is well; memory is for those to judge who know how long it was."""
        bad = [status for ended in self.good.values() for status in ended if status not in (OK, *REFUSALS)]
        found = [f"good requests ended with {status}: {self.said}" for status in sorted(set(bad))]
        if not all(ended.get(OK) for ended in self.good.values()):
            found.append(f"some kind of good request was never answered: {self.good}")
        return found + self.harms + ([f"{self.restarts} restarts"] if self.restarts else [])


class Service(NamedTuple):
    """What is tried."""

    target: Target
    footprint: Footprint
    model: Path  # the ONNX file that it serves


def good_questions(photos: Sequence[Path], predictor: OnnxRuntimePredictor) -> dict[str, list[Question]]:
    """Photos as they are, several in one request, and tensors of several sizes."""
    rule = predictor.manifest.resize
    contents = [path.read_bytes() for path in photos]
    nets = [to_network(read_photo(path), rule) for path in photos]
    return {
        "photos": [photo_question(path.name, [content]) for path, content in zip(photos, contents, strict=True)],
        "batches of photos": [photo_question("three", contents[:3]), photo_question("one, twice", contents[:1] * 2)],
        "tensors": [
            *(tensor_question(path.name, collate([net])) for path, net in zip(photos, nets, strict=True)),
            tensor_question("a batch", collate(nets[:2])),
        ],
    }


class Soak:
    """One soak, and what it has seen so far."""

    def __init__(self, service: Service, seconds: float) -> None:
        self._service, self._seconds = service, seconds
        self._over = asyncio.Event()
        self._start = 0.0
        self.good: dict[str, Counter[str]] = {kind: Counter() for kind in CALLERS}
        self.hostile: dict[str, Counter[str]] = {action.__name__: Counter() for action in ACTIONS}
        self.harms: list[str] = []
        self.memory: list[Memory] = []

    @property
    def passed(self) -> float:
        return time.monotonic() - self._start

    async def run(self, asked: dict[str, Questions], seed: int) -> None:
        """Good load, while each hostile client does all that it knows, again and again until the time is over."""
        self._start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._weigh())
            for kind, callers in CALLERS.items():
                for first in range(callers):
                    tasks.create_task(self._ask(kind, asked[kind], first))
            await asyncio.gather(*(self._attack(random.Random(seed + number)) for number in range(HOSTS)))
            self._over.set()

    async def _ask(self, kind: str, asked: Questions, number: int) -> None:
        while not self._over.is_set():
            status = await asked.send(number)
            self.good[kind][status] += 1
            number += 1
            if status in REFUSALS:
                await asyncio.sleep(0.1)

    async def _attack(self, rng: random.Random) -> None:
        while self.passed < self._seconds:
            for action in rng.sample(ACTIONS, len(ACTIONS)):
                self.hostile[action.__name__][await self._act(action, rng)] += 1

    async def _act(self, action: Action, rng: random.Random) -> str:
        try:
            async with asyncio.timeout(ACTION_SECONDS):
                return await action(self._service.target, rng)
        except Harm as harm:
            self.harms.append(f"{action.__name__}: {harm}")
            return "harm"
        except TimeoutError:
            self.harms.append(f"{action.__name__} had no answer in {ACTION_SECONDS:g} s")
            return "no answer"
        except OSError as error:
            return type(error).__name__  # the server ended the connection, which is its right

    async def _weigh(self) -> None:
        with tqdm(total=round(self._seconds), unit=" s", disable=None) as bar:
            while not self._over.is_set():
                mib = await asyncio.to_thread(self._service.footprint.megabytes)
                self.memory.append(Memory(second=self.passed, mib=mib))
                bar.update(min(round(self._seconds), round(self.passed)) - bar.n)
                bar.set_postfix(answers=sum(ended[OK] for ended in self.good.values()), MiB=round(sum(mib.values())))
                await asyncio.sleep(min(2.0, self._seconds / 20))


async def soak(service: Service, questions: dict[str, list[Question]], seconds: float, seed: int = 0) -> SoakReport:
    """InputError where an answer is wrong before it begins."""
    await asyncio.to_thread(_make_bombs)
    async with Server(service.target.grpc, connections=3) as server:
        asked = {kind: await _checked(server, service.model, each) for kind, each in questions.items()}
        restarts = service.footprint.restarts()
        found = Soak(service, seconds)
        await found.run(asked, seed)
        said = [f"{status}: {text} ({n})" for each in asked.values() for (status, text), n in each.said.items()]
    return SoakReport(
        machine=machine_facts(),
        seconds=found.passed,
        good={kind: dict(ended) for kind, ended in found.good.items()},
        hostile={name: dict(ended) for name, ended in sorted(found.hostile.items())},
        harms=found.harms,
        said=said,
        restarts=service.footprint.restarts() - restarts,
        memory=found.memory,
        growth=growth(found.memory),
    )


async def _checked(server: Server, model: Path, questions: list[Question]) -> Questions:
    """Asked alone, each answer is that of this process; under load it has to stay so."""
    answers = await ask_alone(server, questions)
    predictor = OnnxRuntimePredictor(model)
    for question, answer in zip(questions, answers, strict=True):
        if wrong := await asyncio.to_thread(differing, predictor, question.message, answer):
            raise InputError(f"{question.name}: {' and '.join(wrong)} differ from those of ONNX Runtime in process")
    predictor.close()
    return Questions(server, questions, answers)


def _make_bombs() -> None:
    """They are kept; making one takes seconds in which this process would do nothing else."""
    bombs.photos(), bombs.gzipped(1 << 30), bombs.one_byte_chunks()


def growth(memory: Sequence[Memory]) -> float:
    """The share by which the memory at the end, the median of a quarter, is more than that after the warm-up."""
    sizes = [each.total for each in memory]
    quarter = max(1, len(sizes) // 4)
    first = sizes[int(len(sizes) * WARM_UP) :][:quarter]
    return float(np.median(sizes[-quarter:]) / np.median(first) - 1)
