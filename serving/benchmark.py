"""What the server costs, as ratios measured in one run: the same work in this process, and asked for over gRPC.

    python -m serving.benchmark --run runs/demo

The two take turns (A B A B ...), so that whatever else the machine does falls on both alike. The demo's weights run at
the size of real photos: a copy of its ONNX file with another resize rule.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from pydantic import BaseModel
from tqdm import tqdm

from serving.load_test.asking import Server
from serving.load_test.in_process import differing
from serving.load_test.loops import Length, closed_loop
from serving.load_test.questions import photo_question, tensor_question
from serving.repository import deploy
from serving.server import TritonServer
from upsnet.command_line.command import run as run_command
from upsnet.command_line.tables import make_table, print_tables
from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.geometry import NetworkBatch, ResizeRule, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.manifest import Manifest
from upsnet.photos import read_photo
from upsnet.report import Report
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.predictor import decode_batch

RULE = ResizeRule(short_side=512, max_side=672)  # a photo of 640 x 480 becomes 504 x 672, padded to 512 x 672
PHOTO_SIZE = 640, 480
SMALL, LARGE = (96, 128), (1344, 1344)
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


class ServingBench(Report):
    """serving.json."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    rounds: int
    ratios: list[Ratio]


def with_rule(model: Path, rule: ResizeRule, folder: Path) -> Path:
    """The same network, told to take photos of another size; its manifest beside it."""
    import onnx

    proto = onnx.load(model)
    manifest = Manifest.load(manifest_path(model)).model_copy(update={"resize": rule, "onnx_sha256": ""})
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = manifest.model_dump_json()
    path = folder / "model.onnx"
    onnx.save(proto, path)
    manifest.model_copy(update={"onnx_sha256": sha256(path)}).save(manifest_path(path))
    return path


def make_jpeg() -> bytes:
    """A photo of smooth regions and some noise, whose JPEG is as large as a camera's."""
    width, height = PHOTO_SIZE
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pipeline(predictor: OnnxRuntimePredictor, photos: Sequence[bytes]) -> list:
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


async def rate_here(model: Path, photo: bytes, workers: int, batch: int, seconds: float) -> float:
    """`workers` threads, each with a session of its share of the cores, each with batches of so many photos."""
    cores = int(machine_facts()["cores"])
    predictors = [OnnxRuntimePredictor(model, max(1, cores // workers)) for _ in range(workers)]
    for predictor in predictors:
        pipeline(predictor, [photo] * batch)

    def work(predictor: OnnxRuntimePredictor) -> int:
        done = 0
        while time.perf_counter() < end:
            done += len(pipeline(predictor, [photo] * batch))
        return done

    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(workers) as pool:
        loop = asyncio.get_running_loop()
        counts = await asyncio.gather(*(loop.run_in_executor(pool, work, each) for each in predictors))
    return sum(counts) / (time.perf_counter() - start)


async def rate_of(server: Server, message: bytes, callers: int, seconds: float) -> float:
    start = time.perf_counter()
    samples = await closed_loop(partial(_ask, server, message), callers, Length(seconds), lambda: None)
    return len(samples) / (time.perf_counter() - start)


async def _ask(server: Server, message: bytes, _: int) -> str:
    await server.ask(message)
    return "OK"


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
                await asyncio.wait([other])
    return Turns.of(times)


async def _for_ever(server: Server, message: bytes) -> None:
    while True:
        await server.ask(message)


def zeros(size: tuple[int, int]) -> NetworkBatch:
    return NetworkBatch(np.zeros((1, *size, 3), np.uint8), np.array([size], np.int32), np.ones(1, np.float32))


async def measure(url: str, model: Path, rounds: int, seconds: float) -> list[Ratio]:
    """Every ratio; first, that both say the same."""
    photo = make_jpeg()
    predictor = OnnxRuntimePredictor(model)
    batch = collate([to_network(read_photo(photo), predictor.manifest.resize)])
    asked, tensors = photo_question("photo", [photo]).message, tensor_question("tensors", batch).message

    async def here_photo() -> object:
        return pipeline(predictor, [photo])

    async def here_tensors() -> object:
        return predictor.predict(batch)

    async with Server(url, connections=4) as server:
        for message in (asked, tensors):
            if wrong := differing(predictor, message, await server.ask(message)):
                raise InputError(f"the server's {' and '.join(wrong)} differ from those of ONNX Runtime in process")
        shape = "x".join(map(str, batch.images.shape[1:3]))
        of_photo = await turns(here_photo, lambda: server.ask(asked), rounds, "a photo")
        of_tensors = await turns(here_tensors, lambda: server.ask(tensors), rounds, "tensors")
        cores = int(machine_facts()["cores"])
        ways: dict[str, Rate] = {
            f"{workers} x batch {size}": partial(rate_here, model, photo, workers, size)
            for workers in {1, cores}
            for size in (1, 4)
        }
        served: dict[str, Rate] = {
            f"{callers} callers": partial(rate_of, server, asked, callers) for callers in CALLERS
        }
        found = await rates(ways | served, max(1, rounds // 5), seconds, "saturation")
        small, large = (tensor_question("", zeros(size)).message for size in (SMALL, LARGE))
        small_beside = await beside(server, small, large, seconds, max(1, rounds // 5))
    here, there = ({name: found[name] for name in group} for group in (ways, served))
    return [
        _milliseconds(f"a photo of 640x480 at {shape}, one caller", of_photo, "<= 1.15"),
        _milliseconds(f"tensors of {shape}, one caller", of_tensors, "–"),
        Ratio(
            what="photos at saturation, the best of each",
            here=here,
            server=there,
            unit="photos/s",
            ratio=max(there.values()) / max(here.values()),
            goal=">= 0.95",
        ),
        _milliseconds("tensors of 96x128, alone and beside one caller with 1344x1344", small_beside, "–"),
    ]


def _milliseconds(what: str, found: Turns, goal: str) -> Ratio:
    here, server = {"p50": found.here}, {"p50": found.server}
    return Ratio(what=what, here=here, server=server, unit="ms", ratio=found.ratio, goal=goal)


def main(
    run: Annotated[Path, typer.Option(help="The run whose model is served.")] = Path("runs/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn at saturation.")] = 4.0,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: serving.json in the run).")] = None,
) -> None:
    """What the server adds to the same work in this process, as ratios."""
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        model = with_rule(run / "model.onnx", RULE, Path(folder))
        with TritonServer(deploy(model, manifest_path(model), Path(folder) / "repository")) as server:
            ratios = asyncio.run(measure(server.url, model, rounds, seconds))
    table = make_table("What the server costs", "", "here", "server", "", "ratio", "goal")
    for each in ratios:
        best = max if each.unit != "ms" else min
        values = (f"{best(side.values()):.1f}" for side in (each.here, each.server))
        table.add_row(each.what, *values, each.unit, f"{each.ratio:.2f}", each.goal)
    print_tables(table)
    out = out or run / "serving.json"
    ServingBench(machine=machine_facts(), versions=package_versions(), rounds=rounds, ratios=ratios).save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
