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
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from eval.open_run import open_run, runtimes_here
from eval.report import title
from eval.validation_set import open_dataset
from upsnet.command_line import options
from upsnet.datasets.folder import PanopticFolder
from upsnet.files import write_json
from upsnet.geometry import NetworkBatch, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.photos import read_photo
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, RawPrediction

CALLS = 3  # of one runtime in a row; the first one is not counted
PAUSE_S = 0.02  # between runtimes: idle thread pools stop spinning


class PlainPyTorch:
    """PyTorch eager without the project's compiled operators, which run their torchvision definitions: the baseline."""

    name = "plain PyTorch"

    def __init__(self, pytorch: Predictor) -> None:
        self._pytorch = pytorch
        self.manifest = pytorch.manifest

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        from plugins_cuda import library

        with library.definitions():
            return self._pytorch.predict(batch)

    def close(self) -> None:
        """The predictor is its owner's."""


def measure(predictors: Sequence[Predictor], batch: NetworkBatch, rounds: int) -> dict[str, list[float]]:
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
) -> list[dict[str, Any]]:
    """One entry for each batch size: medians in ms a call, and the ratios that the project's goals speak of."""
    entries = []
    for size in batches:
        photos = [dataset.read(dataset.records[index % len(dataset)])[0] for index in range(size)]
        batch = collate([to_network(photo, predictors[0].manifest.resize) for photo in photos])
        times = measure(predictors, batch, rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        entry: dict[str, Any] = {
            "batch": size,
            "shape": list(batch.images.shape),
            "median_ms": medians,
            "times_ms": times,
        }
        if PlainPyTorch.name in medians and "onnxruntime" in medians:
            entry["onnxruntime_speedup"] = medians[PlainPyTorch.name] / medians["onnxruntime"]
        if "triton" in medians and "onnxruntime" in medians:
            entry["triton_overhead"] = medians["triton"] / medians["onnxruntime"] - 1
        entries.append(entry)
    return entries


def bench_table(entries: Sequence[dict[str, Any]], threads: int) -> Table:
    """Milliseconds a call, and the ratios beside their goals."""
    table = Table(title=f"Median ms a call; {threads} threads each, taking turns", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("batch", *(title(name) for name in entries[0]["median_ms"])):
        table.add_column(heading, justify="right")
    table.add_column("plain / ONNX\nRuntime\n(goal 1.5)", justify="right")
    table.add_column("Triton adds\n(goal 15 %\nat batch 1)", justify="right")
    for entry in entries:
        medians = [f"{value:.1f}" for value in entry["median_ms"].values()]
        speedup = f"{entry['onnxruntime_speedup']:.2f}" if "onnxruntime_speedup" in entry else "–"
        overhead = f"{100 * entry['triton_overhead']:+.1f} %" if "triton_overhead" in entry else "–"
        table.add_row(f"{entry['batch']} ({entry['shape'][1]} x {entry['shape'][2]})", *medians, speedup, overhead)
    return table


def bench_photo(photo: Path, predictor: Predictor, calls: int = 3) -> dict[str, Any]:
    """First and best time of one photo in ms, and this process's peak memory in MiB (Python and the model included)."""
    batch = collate([to_network(read_photo(photo), predictor.manifest.resize)])
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        predictor.predict(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "runtime": predictor.name,
        "shape": list(batch.images.shape),
        "first_ms": times[0],
        "best_ms": min(times),
        "peak_rss_mib": peak_rss_mib(),
    }


def peak_rss_mib() -> float:
    """Most resident memory of this process so far (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _one_photo(photo: Path, model: Path | None, checkpoint: Path | None, threads: int) -> dict[str, Any]:
    runtime = "pytorch" if checkpoint else "onnxruntime"
    predictor = open_runtime(RuntimeOptions(None, runtime, checkpoint, model, threads=threads))
    try:
        facts = bench_photo(photo, predictor)
    finally:
        predictor.close()
    print(
        f"{title(runtime)}, {photo.name} at {facts['shape'][1]} x {facts['shape'][2]}, {threads} threads: best "
        f"{facts['best_ms']:.0f} ms (first {facts['first_ms']:.0f} ms), peak memory {facts['peak_rss_mib']:.0f} MiB"
    )
    return facts


def main(
    run: options.Run = Path("runs/demo"),
    runtimes: options.RuntimeNames = None,
    batch_sizes: options.BatchSizes = [1, 4],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each runtime.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each runtime.")] = 2,
    gt_json: options.GtJson = None,
    url: options.Url = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write (default: bench.json in the run).")] = None,
    photo: Annotated[Path | None, typer.Option(help="Measure this photo alone, with --model or --checkpoint.")] = None,
    model: Annotated[Path | None, typer.Option(help="With --photo: an ONNX model.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="With --photo: a PyTorch checkpoint instead.")] = None,
) -> None:
    """Time PyTorch, ONNX Runtime and Triton against each other; or one photo's time and memory."""
    report: dict[str, Any] = {"machine": machine_facts() | {"threads": threads}, "versions": package_versions()}
    if photo is not None:
        report["photo"] = _one_photo(photo, model, checkpoint, threads)
    else:
        dataset = open_dataset(gt_json, run=run)
        chosen = RuntimeOptions(run, url=url, threads=threads)
        with open_run(chosen, runtimes or runtimes_here(url)[0]) as predictors:
            plain = [PlainPyTorch(each) for each in predictors if each.name == "pytorch"]
            report["batches"] = compare([*plain, *predictors], dataset, batch_sizes, rounds)
        Console().print(bench_table(report["batches"], threads))
        out = out or run / "bench.json"
    if out is not None:
        write_json(out, report)
        print(f"wrote {out}")
