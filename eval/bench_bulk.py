"""Photos of a list by the plain command and on a Ray cluster of this machine, taking turns, with the same cores.

    upsnet bench-bulk --run runs/demo --photos data/shapes/val

Each way starts as the command does. The rate is that of the blocks after the first of each worker, so that starting is
not in it; that is given by itself, and is the same for ten photos and ten million.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table
from tqdm import tqdm

from upsnet.bulk.command import Here, Runner, Work
from upsnet.bulk.on_ray import OnRay
from upsnet.bulk.photo_list import PhotoList
from upsnet.bulk.plan import make_plan
from upsnet.bulk.ray_cluster import LOCAL, Actors
from upsnet.command_line import options
from upsnet.datasets.parallel import usable_cores
from upsnet.errors import InputError
from upsnet.machine import machine_facts, package_versions
from upsnet.report import Report
from upsnet.runtimes.options import RuntimeOptions
from upsnet.sources import find_sources
from upsnet.tables import make_table, print_tables

# Else Ray gives way to other work (15), and on a busy machine that would be what is measured.
NICENESS = "RAY_worker_niceness"
GOAL = 0.9  # of the plain command's photos a second


class Run(NamedTuple):
    """One way, once."""

    photos_per_s: float
    starting_s: float  # until the first block is there


@dataclass(frozen=True)
class Way:
    """One way, in all rounds. Ratios are of its rate by the plain command's in the same round."""

    name: str
    actors: int  # 0: the plain command
    runs: list[Run]
    ratio: float  # median
    lowest: float
    highest: float


class BulkBench(Report):
    """The file that --out names."""

    machine: dict[str, str | int]
    packages: dict[str, str]
    cores: int
    photos: int
    block: int
    ways: list[Way]


def write_list(folder: Path, given: Path, photos: int) -> Path:
    """A list of so many: the photos of a folder again and again."""
    found = [source.path.resolve() for source in find_sources([given]) if not source.is_video]
    if not found:
        raise InputError(f"{given}: no photo in it")
    path = folder / "list.txt"
    path.write_text("".join(f"{found[number % len(found)]}\n" for number in range(photos)))
    return path


def measure(runner: Runner, photos: PhotoList, out: Path, workers: int) -> Run:
    """All blocks of a list. workers: as many blocks are passed over at the start."""
    began = time.perf_counter()
    with closing(runner):
        plan = make_plan(photos, runner.describe([]), "tar")
        ended, done = [], []
        for outcome in runner.run(photos, Work(range(plan.blocks)), plan, str(out), lambda _: None):
            ended.append(time.perf_counter())
            done.append(outcome.photos)
    if sum(done) != photos.photos:
        raise InputError(f"{sum(done)} of {photos.photos} photos came back")
    return Run(sum(done[workers:]) / (ended[-1] - ended[workers - 1]), ended[0] - began)


def compare(source: RuntimeOptions, photos: PhotoList, folder: Path, rounds: int, cores: int) -> list[Way]:
    """The plain command, Ray with one actor of all cores, and with an actor for each core, in turn."""
    ways: dict[str, tuple[int, Callable[[], Runner]]] = {
        "plain": (0, lambda: Here(source._replace(threads=cores), cores)),
        "Ray, 1 actor": (1, lambda: OnRay(LOCAL, Actors(1, cores, 0.0), source)),
        f"Ray, {cores} actors": (cores, lambda: OnRay(LOCAL, Actors(cores, 1, 0.0), source)),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in tqdm(range(rounds), desc="comparing", unit="round", disable=None):
        for name, (actors, make) in ways.items():
            runs[name].append(measure(make(), photos, folder / f"{number}-{actors}", max(actors, 1)))
    found = []
    for name, (actors, _) in ways.items():
        ratios = [one.photos_per_s / plain.photos_per_s for one, plain in zip(runs[name], runs["plain"], strict=True)]
        found.append(Way(name, actors, runs[name], statistics.median(ratios), min(ratios), max(ratios)))
    return found


def table(report: BulkBench) -> Table:
    title = f"{report.photos} photos in blocks of {report.block}, {report.cores} cores, taking turns"
    rows = make_table(title, "", "photos/s", "starting, s", "ratio", "lowest", "highest", "goal")
    for way in report.ways:
        rate, starting = (statistics.median(values) for values in zip(*way.runs, strict=True))
        ratios = [f"{value:.2f}" for value in (way.ratio, way.lowest, way.highest)] if way.actors else ["", "", ""]
        rows.add_row(way.name, f"{rate:.1f}", f"{starting:.1f}", *ratios, str(GOAL) if way.actors else "")
    return rows


def main(
    photos: Annotated[Path, typer.Option(help="A folder of photos, which are taken again and again.")],
    run: options.Run = Path("runs/demo"),
    runtime: options.RuntimeName = None,
    number: Annotated[int, typer.Option(min=2, help="Photos a round.")] = 2000,
    block: Annotated[int, typer.Option(min=1, help="Photos in a block.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is run.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Photos a second of `upsnet predict --photos-from`, plain and with `--ray local`, on the CPU."""
    cores = usable_cores()
    if number < block * (cores + 2):
        raise InputError(f"--number {number}: give at least {cores + 2} blocks of {block}")
    os.environ[NICENESS] = "0"
    source = RuntimeOptions(run, runtime, device="cpu")
    with tempfile.TemporaryDirectory(prefix="bulk-") as name:
        listed = PhotoList.scan(str(write_list(Path(name), photos, number)), block)
        ways = compare(source, listed, Path(name), rounds, cores)
    packages = package_versions() | {"ray": version("ray")}
    report = BulkBench(machine=machine_facts(), packages=packages, cores=cores, photos=number, block=block, ways=ways)
    print_tables(table(report))
    if out is not None:
        report.save(out)
        print(f"wrote {out}")
