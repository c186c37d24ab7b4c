"""The measurements: the same work in this process and asked for over gRPC, taking turns (A B A B ...).

Whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from serving.load_test.asking import Server
from serving.load_test.in_process import differing
from serving.load_test.loops import OK, Length, closed_loop
from serving.load_test.questions import photo_question, tensor_question
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, collate, to_network
from upsnet.machine import machine_facts
from upsnet.photos import read_photo
from upsnet.result import PanopticResult
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.predictor import decode_batch
from upsnet.runtimes.triton import TritonPredictor

SMALL, LARGE = (96, 128), (1344, 1344)
TRANSPORTED = (640, 640)  # 1.2 MB
CALLERS = (4, 8, 16)
PAUSE_S = 0.02  # between turns: idle pools of threads stop spinning
CALLS = 3  # in a turn; the first is not counted

Work = Callable[[], Awaitable[object]]
Rate = Callable[[float], Awaitable[float]]  # seconds -> photos a second


class Ratio(BaseModel):
    """Two figures of one run."""

    what: str
    here: dict[str, float]  # in this process, or alone; several where the best of them counts
    server: dict[str, float]  # of the server, or beside others
    unit: str
    ratio: float  # the server's by ours: of what took turns, the median of the rounds
    goal: str


def pipeline(predictor: OnnxRuntimePredictor, photos: Sequence[bytes]) -> list[PanopticResult]:
    """Encoded photos -> results, as `upsnet predict` does it."""
    nets = [to_network(read_photo(photo), predictor.manifest.resize) for photo in photos]
    return decode_batch(predictor.predict(collate(nets)), nets)


class Turns(NamedTuple):
    """Median milliseconds of two that took turns, and the median of the ratio that they had in each round."""

    here: float
    server: float
    ratio: float

    @classmethod
    def of(cls, rounds: Sequence[tuple[list[float], list[float]]]) -> Turns:
        here, server = ([statistics.median(side[which]) for side in rounds] for which in (0, 1))
        ratio = statistics.median(there / ours for ours, there in zip(here, server, strict=True))
        return cls(statistics.median(here), statistics.median(server), ratio)


async def turns(here: Work, server: Work, rounds: int, title: str) -> Turns:
    """Each is called some times in a round."""
    times: list[tuple[list[float], list[float]]] = []
    for _ in tqdm(range(rounds), desc=title, unit="round", disable=None):
        times.append(([], []))
        for work, found in zip((here, server), times[-1], strict=True):
            await asyncio.sleep(PAUSE_S)
            for call in range(CALLS):
                start = time.perf_counter()
                await work()
                if call:
                    found.append(1e3 * (time.perf_counter() - start))
    return Turns.of(times)


async def rates(ways: dict[str, Rate], rounds: int, seconds: float, title: str) -> dict[str, float]:
    """Median of what each does a second, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc=title, unit="round", disable=None):
        for name, rate in ways.items():
            found[name].append(await rate(seconds))
    return {name: statistics.median(values) for name, values in found.items()}


class Here:
    """The pipeline in this process: threads, each with a session of its share of the cores, and batches of one size."""

    def __init__(self, model: Path, photo: bytes, workers: int, batch: int) -> None:
        threads = max(1, int(machine_facts()["cores"]) // workers)
        self._predictors = [OnnxRuntimePredictor(model, threads) for _ in range(workers)]
        self._photos = [photo] * batch

    async def rate(self, seconds: float) -> float:
        """Photos a second."""
        start = time.perf_counter()

        def work(predictor: OnnxRuntimePredictor) -> int:
            done = 0
            while time.perf_counter() < start + seconds:
                done += len(pipeline(predictor, self._photos))
            return done

        with ThreadPoolExecutor(len(self._predictors)) as pool:
            loop = asyncio.get_running_loop()
            counts = await asyncio.gather(*(loop.run_in_executor(pool, work, each) for each in self._predictors))
        return sum(counts) / (time.perf_counter() - start)


async def rate_of(server: Server, message: bytes, callers: int, seconds: float) -> float:
    start = time.perf_counter()
    samples = await closed_loop(partial(_ask, server, message), callers, Length(seconds), lambda: None)
    return len(samples) / (time.perf_counter() - start)


async def _ask(server: Server, message: bytes, _: int) -> str:
    await server.ask(message)
    return OK


async def beside(server: Server, small: bytes, large: bytes, seconds: float, rounds: int) -> Turns:
    """Small requests, alone and while somebody else sends large ones."""
    times: list[tuple[list[float], list[float]]] = []
    for _ in tqdm(range(rounds), desc="small beside large", unit="round", disable=None):
        times.append(([], []))
        for is_beside, found in enumerate(times[-1]):
            other = asyncio.create_task(_for_ever(server, large)) if is_beside else None
            samples = await closed_loop(partial(_ask, server, small), 1, Length(seconds), lambda: None)
            found += [1e3 * sample.seconds for sample in samples]
            if other is not None:
                other.cancel()
                with suppress(asyncio.CancelledError):
                    await other
    return Turns.of(times)


async def _for_ever(server: Server, message: bytes) -> None:
    while True:
        await server.ask(message)


def zeros(size: tuple[int, int]) -> NetworkBatch:
    return NetworkBatch(np.zeros((1, *size, 3), np.uint8), np.array([size], np.int32), np.ones(1, np.float32))


async def of_network(url: str, model: Path, photo: bytes, rounds: int, seconds: float) -> list[Ratio]:
    """Photos and tensors of the real network; first, that the server says what this process does."""
    predictor = OnnxRuntimePredictor(model)
    batch = collate([to_network(read_photo(photo), predictor.manifest.resize)])
    asked, tensors = photo_question("photo", [photo]).message, tensor_question("tensors", batch).message
    shape = "x".join(map(str, batch.images.shape[1:3]))

    async def here_photo() -> object:
        return pipeline(predictor, [photo])

    async def here_tensors() -> object:
        return predictor.predict(batch)

    async with Server(url, connections=4) as server:
        for message in (asked, tensors):
            if wrong := differing(predictor, message, await server.ask(message)):
                raise InputError(f"the server's {' and '.join(wrong)} differ from those of ONNX Runtime in process")
        of_photo = await turns(here_photo, lambda: server.ask(asked), rounds, "a photo")
        of_tensors = await turns(here_tensors, lambda: server.ask(tensors), rounds, "tensors")
        fewer = max(1, rounds // 5)
        saturated = await _saturation(server, asked, model, photo, fewer, seconds)
        small, large = (tensor_question("", zeros(size)).message for size in (SMALL, LARGE))
        small_beside = await beside(server, small, large, seconds, fewer)
    names = ["x".join(map(str, size)) for size in (SMALL, LARGE)]
    return [
        _milliseconds(f"a photo of 640x480 at {shape}, one caller", of_photo, "<= 1.15"),
        _milliseconds(f"tensors of {shape}, one caller", of_tensors, "–"),
        saturated,
        _milliseconds(f"tensors of {names[0]}, alone and beside one caller with {names[1]}", small_beside, "–"),
    ]


async def _saturation(server: Server, message: bytes, model: Path, photo: bytes, rounds: int, seconds: float) -> Ratio:
    ways: dict[str, Rate] = {
        f"{workers} x batch {size}": Here(model, photo, workers, size).rate
        for workers in sorted({1, int(machine_facts()["cores"])})
        for size in (1, 4)
    }
    served: dict[str, Rate] = {f"{callers} callers": partial(rate_of, server, message, callers) for callers in CALLERS}
    found = await rates(ways | served, rounds, seconds, "saturation")
    here, there = ({name: found[name] for name in group} for group in (ways, served))
    ratio = max(there.values()) / max(here.values())
    what = "photos at saturation, the best of each"
    return Ratio(what=what, here=here, server=there, unit="photos/s", ratio=ratio, goal=">= 0.95")


async def of_transport(url: str, rounds: int, seconds: float) -> Ratio:
    """An image of 1.2 MB and its map, there and back, by our client: in gRPC's messages, and in shared memory."""
    rng = np.random.default_rng(0)
    batch = zeros(TRANSPORTED)._replace(images=rng.integers(0, 256, (1, *TRANSPORTED, 3), dtype=np.uint8))
    with (
        closing(TritonPredictor(url, shared_memory=False)) as message,
        closing(TritonPredictor(url, shared_memory=True)) as shared,
    ):
        if not all(map(np.array_equal, message.predict(batch), shared.predict(batch))):
            raise InputError("the answer in shared memory differs from the one in the message")
        ways: dict[str, Rate] = {
            "gRPC": partial(_rate_of_client, message, batch),
            "shared memory": partial(_rate_of_client, shared, batch),
        }
        found = await rates(ways, rounds, seconds, "transport")
    here, there = ({name: found[name]} for name in ways)
    what = "1.2 MB to a trivial model, gRPC and shared memory"
    ratio = found["shared memory"] / found["gRPC"]
    return Ratio(what=what, here=here, server=there, unit="requests/s", ratio=ratio, goal=">= 2")


async def _rate_of_client(predictor: TritonPredictor, batch: NetworkBatch, seconds: float) -> float:
    """Of one caller."""

    def work() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            predictor.predict(batch)
            done += 1
        return done / (time.perf_counter() - start)

    return await asyncio.to_thread(work)


def _milliseconds(what: str, found: Turns, goal: str) -> Ratio:
    here, server = {"p50": found.here}, {"p50": found.server}
    return Ratio(what=what, here=here, server=server, unit="ms", ratio=found.ratio, goal=goal)
