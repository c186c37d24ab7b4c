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
from serving.load_test.loops import OK, Length, Sample, closed_loop
from serving.load_test.questions import Answer, Question, photo_question
from serving.rollouts.answers import result_of
from upsnet.contract import PHOTO_OUTPUTS
from upsnet.datasets.places import read_file
from upsnet.errors import InputError, ServerError
from upsnet.parity.photos import Photos
from upsnet.parity.pixels import identical_pixels

ROUNDS = 5  # of each version: what else the machine does meets both
NAMED = 3  # messages
LOOKED_AT = 16  # answers that are not those of alone, byte by byte


class Speed(BaseModel):
    """Of one version. Milliseconds of right answers; None without any."""

    answers: int
    p50_ms: float | None
    p95_ms: float | None
    per_second: float
    failed: int  # requests without an answer
    identical: float = 1.0  # share of the pixels that say what they say when the photo is asked alone
    worst: str = ""  # the photo that agrees least with that; empty where all do
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
        self._photos = list(photos)
        self._questions = [photo_question(name, [content], version=version) for name, content in photos]
        self._alone: list[Answer] = []
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self.said: Counter[str] = Counter()
        self._differing = 0  # answers
        self._other: list[tuple[int, Answer]] = []  # some of them, and what was asked

    async def ask_alone(self, may_refuse: bool = False) -> list[Answer]:
        """Each photo by itself, which also warms the version up. ServerError, which names the photo.

        may_refuse: photos that it says are no good (too large, for one) are left out from now on.
        """
        asked, self._questions = list(zip(self._questions, self._photos, strict=True)), []
        self._photos = []
        for number, (question, photo) in enumerate(asked, 1):
            answer = await self._ask(question, f"photo {number} of {len(asked)} ({question.name})", may_refuse)
            if answer is not None:
                self._alone.append(answer)
                self._questions.append(question)
                self._photos.append(photo)
        return self._alone

    async def ask_everything(self) -> list[Answer]:
        """Each photo by itself, for all outputs. ServerError, which names the photo."""
        answers = []
        for number, (name, content) in enumerate(self._photos, 1):
            question = photo_question(name, [content], PHOTO_OUTPUTS, self.version)
            where = f"photo {number} of {len(self._photos)} ({name}), asked for all outputs"
            answers.append(await self._ask(question, where))
        return [answer for answer in answers if answer is not None]

    async def ask_together(self, groups: Sequence[range], may_refuse: bool = False) -> dict[range, Answer]:
        """The photos of these places in one request each. ServerError, which names the photos.

        may_refuse: what it says is no good (too large together) is left out.
        """
        answers = {}
        for places in groups:
            names, contents = zip(*(self._photos[place] for place in places), strict=True)
            question = photo_question(", ".join(names), contents, version=self.version)
            answer = await self._ask(question, f"{len(places)} photos in one request ({question.name})", may_refuse)
            if answer is not None:
                answers[places] = answer
        return answers

    async def _ask(self, question: Question, where: str, may_refuse: bool = False) -> Answer | None:
        try:
            return await self._server.ask(question.message)
        except grpc.aio.AioRpcError as error:
            if may_refuse and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                return None
            raise ServerError(f"{where}: {self._words(error)}", error.code().name) from None

    @property
    def names(self) -> list[str]:
        """Of its photos."""
        return [question.name for question in self._questions]

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
        if answer != self._alone[place]:  # batches may round
            self._differing += 1
            if len(self._other) < LOOKED_AT:
                self._other.append((place, answer))
        return OK

    def _words(self, error: grpc.aio.AioRpcError) -> str:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return f"no answer within {self._server.deadline:g} s" if late else said(error)

    def speed(self) -> Speed:
        """What came of all rounds."""
        good = [1e3 * sample.seconds for sample in self.samples if sample.status == OK]
        p50, p95 = (float(np.percentile(good, share)) if good else None for share in (50, 95))
        shares = [(agreement(answer, self._alone[place]), self._questions[place].name) for place, answer in self._other]
        least, worst = min(shares, default=(1.0, ""))
        lost = self._differing * (1 - sum(same for same, _ in shares) / len(shares)) if shares else 0.0
        return Speed(
            answers=len(good),
            p50_ms=p50,
            p95_ms=p95,
            per_second=len(good) / self.seconds if self.seconds else 0.0,
            failed=len(self.samples) - len(good),
            identical=1 - lost / len(good) if good else 1.0,
            worst=worst if least < 1 else "",
            said=[f"{words} ({times} times)" for words, times in self.said.most_common(NAMED)],
        )


def agreement(a: Answer, b: Answer) -> float:
    """The share of a photo's pixels in which two answers say the same; 0 where sizes differ or one is no answer."""
    try:
        one, other = result_of(a), result_of(b)
    except InputError:
        return 0.0
    return float(identical_pixels(one, other).mean()) if one.ids.shape == other.ids.shape else 0.0


def read_some(photos: Photos, most: int) -> list[tuple[str, bytes]]:
    """Names and encoded contents of at most `most` of them, spread over all. InputError."""
    places = sorted({int(place) for place in np.linspace(0, len(photos) - 1, min(most, len(photos)))})
    return [(photos.name(place), read_file(photos.file(place))) for place in places]


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
        photos=len(reference.names),
        reference=reference.speed(),
        candidate=candidate.speed(),
    )
