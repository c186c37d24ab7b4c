"""What is profiled: the benchmark's cases, one after the other, a separator on the GPU around every call.

    python -m plugins_cuda.gpu_check.workload [--warm 1] [--repeats 5] [--json FILE] [--quick]

With --json it is its own profiler: the cases with their floors, and what PyTorch's profiler, or else CUDA events, saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import OPERATORS, Case
from plugins_cuda.benchmark.ceilings import measure_ceilings
from plugins_cuda.benchmark.inputs import Sizes
from plugins_cuda.benchmark.timing import event_seconds, flushing
from plugins_cuda.gpu_check.traces import Launch, by_case
from upsnet.errors import first_line
from upsnet.files import write_json

WARM, REPEATS = 1, 5


def cases(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    """bfloat16 runs what float16 does."""
    for makes in OPERATORS.values():
        for make in makes(sizes, device):
            case = make()
            if case.dtype != "bfloat16":
                yield case


def run_case(case: Case, warm: int, repeats: int) -> None:
    """Between calls the caches are emptied, and then comes the separator."""
    flush = flushing()
    for _ in range(warm + repeats):
        flush()
        torch.cuda._sleep(1)
        case.ours()
    torch.cuda._sleep(1)


def own_profile(device: torch.device, sizes: Sizes, warm: int, repeats: int) -> dict[str, Any]:
    """`cases`, each with its floor, its kernels and their `source`; `refused`: why it is not a better one."""
    ceilings = measure_ceilings(device, quick=sizes is inputs.QUICK)
    rows, launches, whole = list[dict[str, Any]](), list[Launch](), list[list[Launch]]()
    refusal = ""
    for case in cases(device, sizes):
        whole.append([Launch("all kernels", min(event_seconds(case.ours) for _ in range(warm + repeats)))])
        try:
            launches += [] if refusal else recorded(case, warm, repeats)
        except RuntimeError as error:
            refusal = first_line(error)
        floor = ceilings.floor(case.work, case.dtype)
        rows.append(
            {"operator": case.operator, "case": case.name, "dtype": case.dtype, "layout": case.layout, "floor_s": floor}
        )
    source, kernels = "torch.profiler", whole
    try:
        kernels = by_case(launches, len(rows), warm, repeats)
        if len(kernels) < len(rows):
            raise ValueError(f"it saw {len(kernels)} of {len(rows)} cases")
    except ValueError as error:
        refusal, source, kernels = refusal or str(error), "CUDA events", whole
    for row, each in zip(rows, kernels, strict=True):
        row |= {"source": source, "kernels": [asdict(launch) for launch in each]}
    return {"refused": {"torch.profiler": refusal} if refusal else {}, "cases": rows}


def recorded(case: Case, warm: int, repeats: int) -> list[Launch]:
    """What PyTorch's profiler sees on the GPU, in its order."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recording:
        run_case(case, warm, repeats)
        torch.cuda.synchronize()
    found = [event for event in recording.events() if event.device_type == DeviceType.CUDA]
    found.sort(key=lambda event: event.time_range.start)
    return [Launch(event.name, event.time_range.elapsed_us() / 1e6) for event in found]


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.gpu_check.workload")
    parser.add_argument("--warm", type=int, default=WARM)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    device, sizes = torch.device("cuda"), inputs.QUICK if options.quick else inputs.FULL
    with torch.inference_mode():
        if options.json:
            result = own_profile(device, sizes, options.warm, options.repeats)
            write_json(options.json, result)
        else:
            for case in cases(device, sizes):
                run_case(case, options.warm, options.repeats)
                print(f"{case.operator}, {case.name}, {case.dtype} {case.layout}", flush=True)
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
