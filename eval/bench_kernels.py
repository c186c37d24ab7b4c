"""Models in ONNX Runtime with the library of operators and from function bodies: time, memory, and the same answers.

    upsnet bench-kernels --models runs/demo
    upsnet bench-kernels --models r50.onnx r50_int8.onnx --photo street.jpg

Each model with each choice of kernels is a process of its own. They take turns (A B C A B C ...), so that whatever else
the machine does falls on all of them alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from eval.kernel_worker import Answer, KernelWorker
from upsnet.command_line import options
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.figures import points, share, signed
from upsnet.geometry import collate, to_network
from upsnet.kernels.choice import find_kernels
from upsnet.machine import machine_facts, package_versions
from upsnet.parity.lockstep import run_lockstep
from upsnet.parity.photos import LabelledPhotos
from upsnet.parity.pixels import identical_pixels
from upsnet.photos import read_photo
from upsnet.report import Report, Sparse
from upsnet.result import PanopticResult
from upsnet.runs import find_run
from upsnet.runtimes.open import find_model
from upsnet.runtimes.predictor import decode_batch
from upsnet.tables import make_table, print_tables

CALLS = 2  # of one process in a row; the first one is not counted
PAUSE_S = 0.02  # between processes: idle thread pools stop spinning
NOISE = (480, 640, 3)  # the photo where there is none
BODIES, LIBRARY = "bodies", "library"


class Row(Sparse):
    """One model with one choice of kernels at one batch size; compared are the bodies of the same model."""

    model: str
    kernels: str  # "bodies" or "library"
    loading_ms: float
    first_ms: float  # the first call of the process, at its first batch size
    batch: int
    shape: list[int]
    median_ms: float
    cpu_s: float  # of a call, median: all threads, user and system
    peak_mib: float  # of the process, up to this batch size
    speedup: float  # times the bodies' rate
    speedup_of_first: float | None = None  # times that of the first model's bodies, where the shape is the same
    identical: float  # share of the pixels: of the timed photos, or of the validation set where there is one
    pq: float | None = None
    pq_difference: float | None = None  # to the first model's bodies


class KernelBench(Report):
    """kernels.json."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    threads: int
    rounds: int
    photo: str
    images: int  # of the validation set, 0 without one
    rows: list[Row]


class Timing(NamedTuple):
    """One process at one batch size."""

    milliseconds: list[float]
    cpu_s: list[float]
    peak_mib: float
    shape: list[int]
    results: list[PanopticResult]  # of the photos


class Agreement(NamedTuple):
    """One process at one batch size on a validation set."""

    identical: float  # share of the pixels, to the bodies of the same model
    pq: float | None


def time_batch(workers: Sequence[KernelWorker], photos: Sequence[np.ndarray], rounds: int) -> list[Timing]:
    """The photos as one batch, each network at its own size, by every process in turn."""
    nets = [[to_network(photo, worker.manifest.resize) for photo in photos] for worker in workers]
    batches = [collate(each) for each in nets]
    answers: list[list[Answer]] = [[] for _ in workers]
    for _ in tqdm(range(rounds), desc=f"batch {len(photos)}", unit="round", disable=None):
        for worker, batch, counted in zip(workers, batches, answers, strict=True):
            time.sleep(PAUSE_S)
            counted.append([worker.ask(batch) for _ in range(CALLS)][-1])
    return [
        Timing(
            [answer.milliseconds for answer in counted],
            [answer.cpu_s for answer in counted],
            counted[-1].peak_mib,
            list(batch.images.shape),
            decode_batch(counted[-1].raw, own),
        )
        for counted, batch, own in zip(answers, batches, nets, strict=True)
    ]


def identical_share(results: Sequence[PanopticResult], reference: Sequence[PanopticResult]) -> float:
    """Of all pixels of the photos."""
    same = [identical_pixels(one, other) for one, other in zip(reference, results, strict=True)]
    return float(np.concatenate([each.ravel() for each in same]).mean())


def agree(
    pair: Sequence[KernelWorker], dataset: PanopticFolder, batch_sizes: Sequence[int], limit: int | None
) -> list[Agreement]:
    """A model's two processes on the data set: batch size by batch size, the bodies first."""
    comparison = run_lockstep(pair, LabelledPhotos(dataset, dataset.records[:limit]), batch_sizes)
    return [
        Agreement(
            int(column.class_identical.sum()) / int(column.class_pixels.sum()),
            column.stat.results(column.categories)["results"]["All"]["pq"],
        )
        for column in comparison.columns
    ]


def compare(
    workers: Sequence[KernelWorker],
    photos: Sequence[np.ndarray],
    batch_sizes: Sequence[int],
    rounds: int,
    dataset: PanopticFolder | None = None,
    limit: int | None = None,
) -> list[Row]:
    """The rows of the report. workers: of each model the bodies, then the library. photos: used in turn."""
    timings = [
        time_batch(workers, [photos[index % len(photos)] for index in range(size)], rounds) for size in batch_sizes
    ]
    pairs = [workers[index : index + 2] for index in range(0, len(workers), 2)]
    agreements = [agree(pair, dataset, batch_sizes, limit) for pair in pairs] if dataset else []
    rows = []
    for place, (size, timed) in enumerate(zip(batch_sizes, timings, strict=True)):
        for index, (worker, timing) in enumerate(zip(workers, timed, strict=True)):
            model, kind = divmod(index, 2)
            bodies, first = timed[2 * model], timed[0]
            found = agreements[model][2 * place + kind] if dataset else None
            of_first = agreements[0][2 * place] if dataset else None
            median = statistics.median(timing.milliseconds)
            rows.append(
                Row(
                    model=worker.model,
                    kernels=(BODIES, LIBRARY)[kind],
                    loading_ms=worker.loaded.milliseconds,
                    first_ms=worker.first_ms,
                    batch=size,
                    shape=timing.shape,
                    median_ms=median,
                    cpu_s=statistics.median(timing.cpu_s),
                    peak_mib=timing.peak_mib,
                    speedup=statistics.median(bodies.milliseconds) / median,
                    speedup_of_first=_of_first(first, timing) if len(pairs) > 1 else None,
                    identical=found.identical if found else identical_share(timing.results, bodies.results),
                    pq=found.pq if found else None,
                    pq_difference=_difference(found, of_first),
                )
            )
    return rows


def _of_first(first: Timing, timing: Timing) -> float | None:
    if timing.shape != first.shape:
        return None
    return statistics.median(first.milliseconds) / statistics.median(timing.milliseconds)


def _difference(one: Agreement | None, other: Agreement | None) -> float | None:
    if one is None or other is None or one.pq is None or other.pq is None:
        return None
    return one.pq - other.pq


def kernel_table(report: KernelBench) -> Table:
    """Batch size by batch size, in the order of the processes."""
    several = len({row.model for row in report.rows}) > 1
    ratios = ["times\nthe bodies", *(["times\nthe first"] if several else [])]
    quality = ["identical", *(["PQ", "difference"] if report.images else [])]
    threads = f"{report.threads} thread{'s' * (report.threads > 1)} each"
    title = f"{threads}, taking turns, median of {report.rounds}; {report.photo}"
    headings = ["ms", *ratios, "CPU s", "peak MiB", "loading ms", "first ms", *quality]
    table = make_table(title, "model", "kernels", "batch", *headings, left=2)
    for _, rows in groupby(report.rows, lambda row: row.batch):
        for row in rows:
            cells = [f"{row.median_ms:.1f}", f"{row.speedup:.2f}"]
            if several:
                cells.append("–" if row.speedup_of_first is None else f"{row.speedup_of_first:.2f}")
            cells += [f"{row.cpu_s:.3f}", f"{row.peak_mib:.0f}", f"{row.loading_ms:.0f}", f"{row.first_ms:.0f}"]
            cells.append(share(row.identical))
            if report.images:
                cells += [points(row.pq, 2), "–" if row.pq_difference is None else signed(row.pq_difference)]
            size = f"{row.batch} ({row.shape[1]} x {row.shape[2]})"
            table.add_row(escape(row.model), row.kernels, size, *cells)
        table.add_section()
    return table


def find_dataset(models: Sequence[Path], gt_json: str | None) -> PanopticFolder | None:
    """The one that is named, else the validation set of the first model's run, else None, which a line says."""
    if gt_json is not None:
        return open_dataset(gt_json)
    try:
        return open_dataset(None, run=models[0])
    except InputError as error:
        print(f"no PQ: {error}", file=sys.stderr)
        return None


def read_photos(photo: Path | None, dataset: PanopticFolder | None, count: int) -> tuple[list[np.ndarray], str]:
    """What is timed, and in words."""
    if photo is not None:
        return [read_photo(photo)], photo.name
    if dataset is not None:
        return [dataset.read(record)[0] for record in dataset.records[:count]], "photos of the validation set"
    noise = np.random.default_rng(0).integers(0, 256, NOISE, np.uint8)
    return [noise], f"noise, {NOISE[0]} x {NOISE[1]}"


def main(
    models: Annotated[
        list[Path], typer.Option(help="Runs' or engines' folders or .onnx files; the first is the reference.")
    ] = [Path("runs/demo")],  # noqa: B006
    photo: Annotated[
        Path | None, typer.Option(help="What is timed (default: photos of the validation set, else noise).")
    ] = None,
    batch_sizes: options.BatchSizes = [1, 4],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each process.")] = 15,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads of each process.")] = 2,
    gt_json: options.GtJson = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images of the validation set.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: kernels.json beside the model).")] = None,
) -> None:
    """Time, memory and answers of each model with the library of operators and from function bodies."""
    models = [Path(find_run(model)) for model in models]
    files = [Path(find_model(model, "onnxruntime")[1]) for model in models]
    library = find_kernels("auto")
    if library.library is None:
        raise InputError(f"there is no library of operators to compare with: {library.reason}")
    dataset = find_dataset(models, gt_json)
    sizes = list(dict.fromkeys(batch_sizes))
    photos, what = read_photos(photo, dataset, max(sizes))
    with ExitStack() as stack:
        workers = [
            stack.enter_context(closing(KernelWorker(str(model), file, word, threads)))
            for model, file in zip(models, files, strict=True)
            for word in ("off", "auto")
        ]
        rows = compare(workers, photos, sizes, rounds, dataset, limit)
    report = KernelBench(
        machine=machine_facts(),
        versions=package_versions(),
        threads=threads,
        rounds=rounds,
        photo=what,
        images=len(dataset.records[:limit]) if dataset else 0,
        rows=rows,
    )
    print_tables(kernel_table(report))
    target = out or files[0].with_name("kernels.json")
    report.save(target)
    print(f"wrote {target}")
