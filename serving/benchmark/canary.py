"""What callers notice of a canary: their latency with and without one, taking turns in the same run.

    python -m serving.benchmark.canary --run runs/demo

Two networks: the run's, which costs what a network costs, and one that computes next to nothing, so that what is left
is the service's own work. The candidate is a copy of the version in service.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from rich.table import Table
from tqdm import tqdm

from serving.benchmark.measures import rate_of, zeros
from serving.benchmark.models import make_jpeg, trivial
from serving.load_test.asking import Server
from serving.load_test.loops import OK, Length, Sample, open_loop
from serving.load_test.questions import photo_question, tensor_question
from serving.repository import check_parts, deploy
from serving.rollouts.lease import SECONDS, Lease, give_up, lease_path, renew
from serving.rollouts.running import read_page
from serving.rollouts.steps import stage
from serving.server import TritonServer
from upsnet.command_line.command import run as run_command
from upsnet.command_line.options import run_option
from upsnet.contract import manifest_path
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.machine import machine_facts, package_versions
from upsnet.manifest import Manifest
from upsnet.report import Report
from upsnet.tables import make_table, print_tables

PHOTO_SIZE = 640, 480
EMPTY_SIDE = 640  # of the image for the network that computes next to nothing: 1.2 MB
CALLERS = 4  # who find out how much the server can do
START_SECONDS = 60.0  # for the candidate
PERCENTILES = (50, 99)
NOTHING = 1e-9  # of the requests
FOLLOWED_SECONDS = 1.0  # after which the service has seen another share


class Effect(BaseModel):
    """Milliseconds of callers by percentile, without and with a canary, and the ratio that most rounds had."""

    model: str
    share: float  # of the requests that are mirrored
    rate: float  # requests a second
    requests: tuple[int, int]
    failed: tuple[int, int]
    without: dict[int, float]
    beside: dict[int, float]
    ratio: dict[int, float]
    cpu_ms: tuple[float, float]  # of the service's own process for a request, without and with
    mirrored: int


class CanaryBench(Report):
    """canary.json."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    utilisation: float  # of what the server can do
    effects: list[Effect]


def cpu_seconds(port: int) -> float:
    """Of the service's own process: the front, and not Triton."""
    families = text_string_to_metric_families(read_page(f"127.0.0.1:{port}", "/metrics").decode())
    return sum(each.value for family in families for each in family.samples if each.name == "process_cpu_seconds_total")


def wait_for(port: int, true: Any) -> dict[str, Any]:
    """What the health says when that is so. InputError where it does not become so."""
    end = time.monotonic() + START_SECONDS
    while not true(told := json.loads(read_page(f"127.0.0.1:{port}", "/health/versions"))):
        if time.monotonic() > end:
            raise InputError(f"the service did not follow within {START_SECONDS:g} s; it says {told}")
        time.sleep(0.1)
    return told


async def turn(server: Server, message: bytes, rate: float, seconds: float, seed: int) -> list[Sample]:
    async def send(number: int) -> str:
        try:
            await server.ask(message)
        except Exception as error:  # counted
            return type(error).__name__
        return OK

    return await open_loop(send, Length(seconds).arrivals(rate, seed), lambda: None)


async def measure(
    server: TritonServer, message: bytes, name: str, share: float, load: float, rounds: int, seconds: float
) -> Effect:
    """Callers who arrive at random, at `load` of the rate that the server reaches, in turns with and without. The
    canary's process runs all the time: in a turn without, next to nothing is mirrored."""
    port, path = server.ports["metrics"], lease_path(server.repository)
    lease = Lease(version=2, share=1.0, until=0)
    taken: tuple[list[list[Sample]], list[list[Sample]]] = ([], [])
    cpu = [0.0, 0.0]
    async with Server(server.url, connections=CALLERS) as asking:
        renew(path, lease)
        wait_for(port, lambda told: (told["canary"] or {}).get("active"))
        await rate_of(asking, message, CALLERS, 2.0)
        begun = wait_for(port, lambda told: told["canary"]["mirrored"])["canary"]
        lease.share = NOTHING
        renew(path, lease)
        rate = load * await rate_of(asking, message, CALLERS, 3.0)
        for number in tqdm(range(2 * rounds), desc=name, unit="turn", disable=None):
            which = number % 2
            lease.share = share if which else NOTHING
            renew(path, lease)
            await asyncio.sleep(FOLLOWED_SECONDS)
            cpu[which] -= cpu_seconds(port)
            taken[which].append(await turn(asking, message, rate, seconds, number // 2))
            cpu[which] += cpu_seconds(port)
        ended = wait_for(port, lambda told: told["canary"])["canary"]
        give_up(path, lease)
    without, beside, ratio = zip(*(compare(*taken, p) for p in PERCENTILES), strict=True)
    requests = [sum(map(len, turns)) for turns in taken]
    failed = [sum(each.status != OK for turn in turns for each in turn) for turns in taken]
    return Effect(
        model=name,
        share=share,
        rate=round(rate, 2),
        requests=(requests[0], requests[1]),
        failed=(failed[0], failed[1]),
        without=dict(zip(PERCENTILES, without, strict=True)),
        beside=dict(zip(PERCENTILES, beside, strict=True)),
        ratio=dict(zip(PERCENTILES, ratio, strict=True)),
        cpu_ms=(round(1e3 * cpu[0] / requests[0], 3), round(1e3 * cpu[1] / requests[1], 3)),
        mirrored=ended["mirrored"] - begun["mirrored"],
    )


def compare(without: list[list[Sample]], beside: list[list[Sample]], percentile: int) -> tuple[float, float, float]:
    """Medians of the turns' percentiles in milliseconds, and of the ratios that they had in each round."""
    found = np.array(
        [
            [1e3 * np.percentile([each.seconds for each in some], percentile) for some in turns]
            for turns in zip(without, beside, strict=True)
        ]
    )
    medians = np.median(found, axis=0)
    ratio = float(np.median(found[:, 1] / found[:, 0]))
    return round(float(medians[0]), 3), round(float(medians[1]), 3), round(ratio, 3)


def table_of(effects: list[Effect]) -> Table:
    table = make_table(
        "What callers notice of a canary",
        "network",
        "share",
        "per s",
        "mirrored",
        "p50 ms",
        "",
        "ratio",
        "p99 ms",
        "",
        "ratio",
        "front's CPU ms",
        "",
    )
    for each in effects:
        parts = [f"{each.share:.0%}", f"{each.rate:.1f}", f"{each.mirrored}"]
        for p in PERCENTILES:
            parts += [f"{each.without[p]:.1f}", f"{each.beside[p]:.1f}", f"{each.ratio[p]:.2f}"]
        table.add_row(each.model, *parts, *(f"{cpu:.2f}" for cpu in each.cpu_ms))
    return table


def main(
    run: Annotated[Path, run_option("The run whose model is served.")] = Path("runs/demo"),
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Of the requests that are mirrored.")] = 0.1,
    load: Annotated[float, typer.Option(min=0.01, max=1, help="Of the requests that the server can answer.")] = 0.3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, max=0.7 * SECONDS, help="Of each turn.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: canary.json in the run).")] = None,
) -> None:
    """Callers' latency with a canary by their latency without."""
    photo = photo_question("photo", [make_jpeg(*PHOTO_SIZE)]).message
    tensors = tensor_question("tensors", zeros((EMPTY_SIDE, EMPTY_SIDE))).message
    effects = []
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        rule = ResizeRule(short_side=EMPTY_SIDE, max_side=EMPTY_SIDE)
        like = Manifest.load(manifest_path(run / "model.onnx")).model_copy(update={"resize": rule})
        empty = trivial(like, Path(folder) / "trivial/model.onnx")
        for name, model, message in (("empty", empty, tensors), (like.name, run / "model.onnx", photo)):
            repository = deploy(model, manifest_path(model), Path(folder) / name)
            stage(repository, check_parts(model, manifest_path(model)))
            with TritonServer(repository) as server:
                ready = partial(lambda told: (told["versions"].get("2") or {}).get("state") == "ready")
                wait_for(server.ports["metrics"], ready)
                effects.append(asyncio.run(measure(server, message, name, share, load, rounds, seconds)))
    print_tables(table_of(effects))
    out = out or run / "canary.json"
    CanaryBench(machine=machine_facts(), versions=package_versions(), utilisation=load, effects=effects).save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
