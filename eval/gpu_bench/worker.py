"""python -m eval.gpu_bench.worker NETWORK VARIANT PRECISION DEVICE SCRATCH ROWS: one case, in a process of its own.

Each batch size becomes a line of JSON in the file ROWS as soon as it is known. Exit status 3: skipped, the last line
of the output says why.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.gpu_bench import cases, modules
from eval.gpu_bench.cases import BATCHES, CEILINGS, TINY, Case
from eval.gpu_bench.network import make_batch
from eval.gpu_bench.variants import Machine, Run, load_network, open_case
from eval.kernel_worker import peak_mib
from plugins_cuda import library
from plugins_cuda.benchmark.ceilings import measure_ceilings
from plugins_cuda.gpu_check.process import Skip
from training.predictor import true_float32
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import RawPrediction

SKIPPED = 3  # exit status
LEAST, MOST_CALLS = 5, 100  # calls of one batch size that are timed
SECONDS = 4.0  # for them; rehearsed, as few as can be
WARM = 3


def measure(case: Case, machine: Machine, rows: Path) -> None:
    start = time.perf_counter()
    free = _free(machine)
    print("loading the network", flush=True)
    prepare = open_case(case, machine)
    for size in BATCHES:
        print(f"batch {size}", flush=True)  # what it was at, should it be stopped
        batch = make_batch(case.network, size)
        run = prepare(batch)
        for _ in range(WARM):
            raw = run(batch)
        setup = time.perf_counter() - start
        times = time_calls(run, batch, SECONDS if machine.on_gpu else 0)
        row: dict[str, Any] = {
            **case._asdict(),
            "batch": size,
            "shape": list(batch.images.shape),
            "status": "done",
            "setup_s": round(setup, 1),
            "calls": len(times),
            "median_ms": statistics.median(times),
            "p95_ms": float(np.percentile(times, 95)),
            "images_per_s": 1e3 * size / statistics.median(times),
            **_memory(machine, free),
            "segments": int(raw.segment_count.sum()) / size,
            "identical": _agreement(case, machine, size, raw),
        }
        if case.variant == cases.EAGER:
            row["modules"] = _modules(case, machine, batch)
        add_row(rows, row)
        start = time.perf_counter()


def time_calls(run: Run, batch: NetworkBatch, seconds: float) -> list[float]:
    """Milliseconds of each call, from the host's memory to the host's memory, for so long or LEAST of them."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or (len(times) < MOST_CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        run(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def add_row(rows: Path, row: dict[str, Any]) -> None:
    """On the disk when this returns: the machine may be taken back."""
    with rows.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _free(machine: Machine) -> int:
    return torch.cuda.mem_get_info(machine.device)[0] if machine.on_gpu else 0


def _memory(machine: Machine, before: int) -> dict[str, float]:
    """Peak of the device's memory that PyTorch held, and all that is held now, whoever holds it; on a CPU the process's
    peak."""
    if not machine.on_gpu:
        return {"peak_mib": peak_mib()}
    held = (before - _free(machine)) / 2**20
    return {"peak_mib": max(held, torch.cuda.max_memory_reserved(machine.device) / 2**20), "held_mib": held}


def _agreement(case: Case, machine: Machine, size: int, raw: RawPrediction) -> float | None:
    """Share of the pixels that are the baseline's, of the same precision; None where that has not run."""
    path = machine.scratch / f"{case.network}_{case.precision}_{size}.npy"
    if case.variant == cases.REFERENCE:
        np.save(path, raw.panoptic)
    return float((np.load(path) == raw.panoptic).mean()) if path.is_file() else None


def _modules(case: Case, machine: Machine, batch: NetworkBatch) -> dict[str, dict[str, float]]:
    model = load_network(case, machine)
    inputs = [torch.from_numpy(array).to(machine.device) for array in batch]
    with true_float32():
        return {name: cost._asdict() for name, cost in modules.measure(model, inputs).items()}


def _ceilings(machine: Machine, rows: Path) -> None:
    """And our kernels, compiled here where that is still to be done, so that no case's time goes into it."""
    found = measure_ceilings(machine.device, quick=not machine.on_gpu)
    start = time.perf_counter()
    kernels = library.compiled(machine.device)
    row = {
        "variant": CEILINGS,
        "status": "done",
        "bytes_per_s": found.bandwidth,
        "operations_per_s": found.matrix_operations,
        "kernels": kernels.path.name if kernels else "none",
        "kernels_s": round(time.perf_counter() - start, 1),
    }
    add_row(rows, row)


def main(arguments: list[str]) -> int:
    network, variant, precision, device, scratch, rows = arguments
    machine = Machine(torch.device(device), Path(scratch))
    if network in TINY:
        torch.set_num_threads(2)
    try:
        if variant == CEILINGS:
            _ceilings(machine, Path(rows))
        else:
            measure(Case(network, variant, precision), machine, Path(rows))
    except Skip as reason:
        print(reason)
        return SKIPPED
    except torch.OutOfMemoryError as error:
        print(f"out of memory: {str(error).splitlines()[0]}")
        return 1
    print("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
