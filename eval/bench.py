"""How fast each runtime is, as ratios of medians measured in the same run, with the same threads.

    upsnet bench --run runs/demo
    upsnet bench --photo street.jpg --model full.onnx     # time and memory of one photo

The runtimes take turns (A B C A B C ...), so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table
from tqdm import tqdm

from eval.open_run import open_run, runtimes_here
from upsnet.command_line import options
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.validation_set import open_dataset
from upsnet.figures import title
from upsnet.geometry import NetworkBatch, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.photos import read_photo
from upsnet.report import Report, Sparse
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, RawPrediction
from upsnet.tables import make_table, print_tables

CALLS = 3  # of one runtime in a row; the first one is not counted
PAUSE_S = 0.02  # between runtimes: idle thread pools stop spinning


class BatchTimes(Sparse):
    """One batch size: devices and milliseconds a call by runtime, and the ratios that the project's goals speak of."""

    batch: int
    shape: list[int]
    devices: dict[str, str]
    median_ms: dict[str, float]
    times_ms: dict[str, list[float]]
    onnxruntime_speedup: float | None = None  # times plain PyTorch's rate
    triton_overhead: float | None = None  # share that Triton adds to ONNX Runtime


class PhotoTimes(BaseModel):
    """One photo, and the peak memory of this process (Python and the model included)."""

    runtime: str
    device: str
    shape: list[int]
    first_ms: float
    best_ms: float
    peak_rss_mib: float


class Bench(Report, Sparse):
    """bench.json: of several runtimes, or of one photo."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    photo: PhotoTimes | None = None
    batches: list[BatchTimes] | None = None


class PlainPyTorch:
    """PyTorch eager without the project's compiled operators, which run their torchvision definitions: the baseline."""

    name = "plain PyTorch"

    def __init__(self, pytorch: Predictor) -> None:
        self._pytorch = pytorch
        self.manifest, self.device_name = pytorch.manifest, pytorch.device_name
        self.kernels = "the definitions in PyTorch"

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        from plugins_cuda import library

        with library.definitions():
            return self._pytorch.predict(batch)

    def close(self) -> None:
        """The predictor is its owner's."""


def time_calls(predictors: Sequence[Predictor], batch: NetworkBatch, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every counted call, by runtime."""
    times: dict[str, list[float]] = {predictor.name: [] for predictor in predictors}
    for _ in tqdm(range(rounds), desc=f"batch {len(batch.images)}", unit="round", disable=None):
        for predictor in predictors:
            time.sleep(PAUSE_S)
            for call in range(CALLS):
                start = time.perf_counter()
                predictor.predict(batch)
                if call:
                    times[predictor.name].append(1e3 * (time.perf_counter() - start))
    return times


def compare(
    predictors: Sequence[Predictor], dataset: PanopticFolder, batches: Sequence[int], rounds: int
) -> list[BatchTimes]:
    """One entry for each batch size."""
    entries = []
    for size in batches:
        photos = [dataset.read(dataset.records[index % len(dataset)])[0] for index in range(size)]
        batch = collate([to_network(photo, predictors[0].manifest.resize) for photo in photos])
        times = time_calls(predictors, batch, rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        plain, onnx, triton = (medians.get(name) for name in (PlainPyTorch.name, "onnxruntime", "triton"))
        entries.append(
            BatchTimes(
                batch=size,
                shape=list(batch.images.shape),
                devices={predictor.name: predictor.device_name for predictor in predictors},
                median_ms=medians,
                times_ms=times,
                onnxruntime_speedup=plain / onnx if plain and onnx else None,
                triton_overhead=triton / onnx - 1 if triton and onnx else None,
            )
        )
    return entries


def bench_table(entries: Sequence[BatchTimes], threads: int) -> Table:
    """Milliseconds a call, and the ratios beside their goals."""
    goals = ("plain / ONNX\nRuntime\n(goal 1.5)", "Triton adds\n(goal 15 %\nat batch 1)")
    names = (f"{title(name)}\n{device}" for name, device in entries[0].devices.items())
    table = make_table(f"Median ms a call; {threads} threads each, taking turns", "batch", *names, *goals)
    for entry in entries:
        medians = [f"{value:.1f}" for value in entry.median_ms.values()]
        speedup = "–" if entry.onnxruntime_speedup is None else f"{entry.onnxruntime_speedup:.2f}"
        overhead = "–" if entry.triton_overhead is None else f"{100 * entry.triton_overhead:+.1f} %"
        table.add_row(f"{entry.batch} ({entry.shape[1]} x {entry.shape[2]})", *medians, speedup, overhead)
    return table


def bench_photo(photo: Path, predictor: Predictor) -> PhotoTimes:
    """The first call counts as `first_ms`; `best_ms` is the best of all."""
    batch = collate([to_network(read_photo(photo), predictor.manifest.resize)])
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        predictor.predict(batch)
        times.append(1e3 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts it in KiB, macOS in bytes
    return PhotoTimes(
        runtime=predictor.name,
        device=predictor.device_name,
        shape=list(batch.images.shape),
        first_ms=times[0],
        best_ms=min(times),
        peak_rss_mib=peak / (2**20 if sys.platform == "darwin" else 2**10),
    )


def _one_photo(
    photo: Path, model: Path | None, checkpoint: Path | None, engine: Path | None, threads: int, device: str | None
) -> PhotoTimes:
    runtime = None if engine else "pytorch" if checkpoint else "onnxruntime"
    options = RuntimeOptions(None, runtime, checkpoint, model, threads=threads, device=device, engine=engine)
    with closing(open_runtime(options)) as predictor:
        facts = bench_photo(photo, predictor)
    print(
        f"{title(facts.runtime)}, {photo.name} at {facts.shape[1]} x {facts.shape[2]}, {threads} threads, device "
        f"{facts.device}: best {facts.best_ms:.0f} ms (first {facts.first_ms:.0f} ms), peak memory "
        f"{facts.peak_rss_mib:.0f} MiB"
    )
    return facts


def main(
    run: options.Run = Path("runs/demo"),
    runtimes: options.RuntimeNames = None,
    batch_sizes: options.BatchSizes = [1, 4],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each runtime.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each runtime.")] = 2,
    device: options.Device = None,
    gt_json: options.GtJson = None,
    url: options.Url = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: bench.json in the run).")] = None,
    photo: Annotated[
        Path | None, typer.Option(help="This photo alone, with --model, --checkpoint or --engine.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="With --photo: an ONNX model.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="With --photo: a PyTorch checkpoint instead.")] = None,
    engine: options.EngineFile = None,
) -> None:
    """Time the runtimes that are here against each other; or one photo's time and memory."""
    photo_times, batches = None, None
    if photo is not None:
        photo_times = _one_photo(photo, model, checkpoint, engine, threads, device)
    else:
        dataset = open_dataset(gt_json, run=run)
        chosen = RuntimeOptions(run, url=url, threads=threads, device=device, engine=engine)
        with open_run(chosen, runtimes or runtimes_here(chosen)[0]) as predictors:
            plain = [PlainPyTorch(each) for each in predictors if each.name == "pytorch"]
            batches = compare([*plain, *predictors], dataset, batch_sizes, rounds)
        print_tables(bench_table(batches, threads))
        out = out or run / "bench.json"
    if out is not None:
        facts = machine_facts() | {"threads": threads}
        Bench(machine=facts, versions=package_versions(), photo=photo_times, batches=batches).save(out)
        print(f"wrote {out}")
