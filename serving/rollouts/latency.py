"""How fast two versions answer photos under one load, by turns in one run; and whether they answer then as alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import grpc
import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from serving.load_test.asking import Server, said
from serving.load_test.loops import OK, WRONG, Length, Sample, closed_loop
from serving.load_test.questions import Answer, Question, photo_question
from serving.rollouts.answers import result_of
from upsnet.errors import ServerError
from upsnet.parity.photos import Photos
from upsnet.parity.pixels import identical_pixels

ROUNDS = 5  # of each version: what else the machine does meets both
AGREE = 0.98  # of the pixels: a batch may round otherwise than a photo alone, which eight bits keep to
NAMED = 3  # messages


class Speed(BaseModel):
    """Of one version. Milliseconds of right answers; None without any."""

    answers: int
    p50_ms: float | None
    p95_ms: float | None
    per_second: float
    failed: int  # requests without an answer, or with another one than alone
    said: list[str]  # in place of answers: the most frequent words


class Latency(BaseModel):
    """Both versions, at one load."""

    concurrency: int  # callers at once, each of whom waits for its answer
    photos: int
    reference: Speed
    candidate: Speed

    @property
    def ratios(self) -> dict[str, float | None]:
        """The candidate's milliseconds as a multiple of the reference's."""
        pairs = {name: (getattr(self.candidate, name), getattr(self.reference, name)) for name in ("p50_ms", "p95_ms")}
        return {name[:3]: mine / others if mine and others else None for name, (mine, others) in pairs.items()}


class Side:
    """A version that is asked photos, and what came of it."""

    def __init__(self, server: Server, version: int, photos: Sequence[tuple[str, bytes]]) -> None:
        self.version = version
        self._server = server
        self._questions = [photo_question(name, [content], version=version) for name, content in photos]
        self._alone: list[Answer] = []
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self.said: Counter[str] = Counter()

    async def ask_alone(self) -> list[Answer]:
        """Each photo by itself, which also warms the version up. ServerError, which names the photo."""
        for number, question in enumerate(self._questions, 1):
            try:
                self._alone.append(await self._server.ask(question.message))
            except grpc.aio.AioRpcError as error:
                where = f"photo {number} of {len(self._questions)} ({question.name})"
                raise ServerError(f"{where}: {self._words(error)}", error.code().name) from None
        return self._alone

    async def load(self, callers: int, length: Length, bar: tqdm) -> None:
        """A round."""
        start = time.perf_counter()
        self.samples += await closed_loop(self._send, callers, length, bar.update)
        self.seconds += time.perf_counter() - start

    async def _send(self, number: int) -> str:
        place = number % len(self._questions)
        question: Question = self._questions[place]
        try:
            answer = await self._server.ask(question.message)
        except grpc.aio.AioRpcError as error:
            self.said[f"{question.name}: {self._words(error)}"] += 1
            return error.code().name
        if answer == self._alone[place] or _alike(answer, self._alone[place]):
            return OK
        self.said[f"{question.name}: answered otherwise than alone"] += 1
        return WRONG

    def _words(self, error: grpc.aio.AioRpcError) -> str:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return f"no answer within {self._server.deadline:g} s" if late else said(error)

    @property
    def speed(self) -> Speed:
        good = [1e3 * sample.seconds for sample in self.samples if sample.status == OK]
        p50, p95 = (float(np.percentile(good, share)) if good else None for share in (50, 95))
        return Speed(
            answers=len(good),
            p50_ms=p50,
            p95_ms=p95,
            per_second=len(good) / self.seconds if self.seconds else 0.0,
            failed=len(self.samples) - len(good),
            said=[f"{words} ({times} times)" for words, times in self.said.most_common(NAMED)],
        )


def _alike(a: Answer, b: Answer) -> bool:
    one, other = result_of(a), result_of(b)
    return one.ids.shape == other.ids.shape and bool(identical_pixels(one, other).mean() >= AGREE)


def read_some(photos: Photos, most: int) -> list[tuple[str, bytes]]:
    """Names and encoded contents of at most `most` of them, spread over all."""
    places = sorted({int(place) for place in np.linspace(0, len(photos) - 1, min(most, len(photos)))})
    return [(photos.name(place), photos.path(place).read_bytes()) for place in places]


async def compare_latency(reference: Side, candidate: Side, concurrency: int, seconds: float) -> Latency:
    """Both have been asked alone. Each is loaded for `seconds` in all, ROUNDS times, now one first, now the other; no
    longer than until a request has failed."""
    length = Length(seconds / ROUNDS)
    with tqdm(desc="load", unit=" requests", disable=None) as bar:
        for number in range(ROUNDS):
            for side in (reference, candidate) if number % 2 == 0 else (candidate, reference):
                await side.load(concurrency, length, bar)
            if reference.said or candidate.said:
                break
    return Latency(
        concurrency=concurrency,
        photos=len(reference._questions),
        reference=reference.speed,
        candidate=candidate.speed,
    )
