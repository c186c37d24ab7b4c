"""python -m plugins_cuda.benchmark [--device cpu|cuda] [--only ROOM ...] [--json FILE] [--rounds N] [--demo|--quick]"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plugins_cuda import library
from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.cases import OPERATORS, Case, Make
from plugins_cuda.benchmark.ceilings import Ceilings, measure_ceilings
from plugins_cuda.benchmark.inputs import Sizes
from plugins_cuda.benchmark.memory import peak_of
from plugins_cuda.benchmark.report import print_table
from plugins_cuda.benchmark.timing import Call, Times, time_cpu, time_cuda
from upsnet.errors import first_line
from upsnet.files import write_json
from upsnet.machine import machine_facts, package_versions

MEMORY_GOAL = 64e6
Json = dict[str, Any]  # what the JSON file holds; an image that has only PyTorch has no pydantic
COLUMNS = (
    "operator", "case", "type, layout", "floor us", "ours us (least)", "warm us", "x floor", "MB more",
    "baseline us (least)", "times", "goal", "met",
)  # fmt: skip


def benchmark(
    device: torch.device,
    sizes: Sizes,
    only: Sequence[str] = (),
    rounds: int = 0,
    keep: Callable[[Json], object] = lambda result: None,
) -> Json:
    """The measurements, as the JSON file holds them. A case that cannot run has an `error` instead of times.

    keep: gets what there is after each case, for whoever may be cut short.
    """
    ceilings = measure_ceilings(device, quick=sizes is inputs.QUICK)
    facts: Json = {"machine": machine_facts() | {"threads": torch.get_num_threads()}}
    if device.type == "cuda":
        facts["machine"]["gpu"] = torch.cuda.get_device_name(device)
    rooms = only or tuple(OPERATORS)
    result = facts | {
        "device": device.type,
        "compiled": library.compiled(device) is not None,
        "versions": package_versions(),
        "sizes": vars(sizes),
        "ceilings": vars(ceilings),
        "rows": [],
        "memory": {},
    }
    for room in rooms:
        for make in OPERATORS[room](sizes, device):
            result["rows"].append(measure_case(room, make, device, ceilings, rounds))
            keep(result)
            print(said(result["rows"][-1]), flush=True)
    for room in rooms if device.type == "cpu" else ():
        result["memory"][room] = cpu_memory(room, sizes)
        keep(result)
    return result


def measure_case(room: str, make: Make, device: torch.device, ceilings: Ceilings, rounds: int) -> Json:
    """One case: ours and the baseline taking turns. What goes wrong is its `error`: the other cases still count."""
    row: Json = {"operator": room, "case": "?", "dtype": "?", "layout": "?", "baseline": None, "floor_s": None}
    try:
        case = make()
        row |= {
            "case": case.name, "dtype": case.dtype, "layout": case.layout,
            "baseline": case.baseline_name, "work": vars(case.work), "goal": vars(case.goal),
            "floor_s": ceilings.floor(case.work, case.dtype),
        }  # fmt: skip
        with torch.inference_mode():
            case.ours()
            ours, baseline = {"ours": case.ours}, {"baseline": case.baseline}
            refusal = refused(case.baseline)
            if refusal is not None:
                row |= {"baseline": None, "baseline_refusal": refusal}
                baseline = {}
            if device.type == "cuda":
                cold, warm = time_cuda(ours, baseline, rounds or 30)
                row["extra_bytes"] = {name: cuda_peak(call) for name, call in (ours | baseline).items()}
            else:
                cold, warm = time_cpu(ours | baseline, rounds or 9), {}
        return row | judged(case, cold, warm)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}


def refused(call: Call) -> str | None:
    """Why a baseline does not run: not every one can do every type."""
    try:
        call()
    except RuntimeError as error:
        return first_line(error)
    return None


def cuda_peak(call: Call) -> int:
    """Bytes of device memory that the call takes at its peak, outputs included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def judged(case: Case, cold: Times, warm: Times) -> Json:
    """Times, ratio (of the medians) and whether the goal was met; on a GPU the cold times count."""
    medians = {name: statistics.median(values) for name, values in cold.items()}
    ratio = medians["baseline"] / medians["ours"] if "baseline" in medians else None
    goal, met = case.goal, None
    if goal.ratio or goal.seconds:
        enough = not goal.ratio or (ratio is not None and ratio >= goal.ratio)
        met = enough and (not goal.seconds or medians["ours"] <= goal.seconds)
    return {
        "seconds": cold,
        "warm_seconds": warm,
        "median_s": medians,
        "least_s": {name: min(values) for name, values in cold.items()},
        "warm_median_s": {name: statistics.median(values) for name, values in warm.items()},
        "ratio": ratio,
        "met": met,
    }


def cpu_memory(room: str, sizes: Sizes) -> Json:
    """Peak resident memory of one call beyond its inputs, ours and the reference's, in bytes."""
    try:
        peaks = {which: peak_of(room, sizes, which) for which in ("ours", "reference")}
    except RuntimeError as error:
        return {"error": str(error)}
    goal = MEMORY_GOAL if room == "panoptic_fusion" else None
    return {"peak_bytes": peaks, "goal_bytes": goal, "met": None if goal is None else peaks["ours"] <= goal}


def micro(seconds: float | None) -> str:
    """Microseconds."""
    return "–" if seconds is None else f"{1e6 * seconds:.0f}" if seconds >= 1e-4 else f"{1e6 * seconds:.1f}"


def said(row: Json) -> str:
    """A case in one line, as soon as it is known."""
    head = f"{row['operator']}, {row['case']}, {row['dtype']} {row['layout']}: "
    if "error" in row:
        return head + f"failed, {row['error'].splitlines()[0]}"
    times = ", ".join(f"{name} {micro(seconds)} us" for name, seconds in row["median_s"].items())
    return f"{head}{times}, floor {micro(row['floor_s'])} us"


def cells(row: Json) -> list[str]:
    """A row of the table."""
    head = [row["operator"], row["case"], f"{row['dtype']}, {row['layout']}", micro(row["floor_s"])]
    if "error" in row:
        return [*head, f"failed: {row['error'].splitlines()[0]}", *[""] * (len(COLUMNS) - len(head) - 1)]
    median, least, goal = row["median_s"], row["least_s"], row["goal"]
    pair = {name: f"{micro(median[name])} ({micro(least[name])})" if name in median else "–" for name in
            ("ours", "baseline")}  # fmt: skip
    wishes = [f">= {goal['ratio']:g} x"] if goal["ratio"] else []
    wishes += [f"<= {micro(goal['seconds'])} us"] if goal["seconds"] else []
    extra = row.get("extra_bytes")
    return [
        *head,
        pair["ours"],
        micro(row["warm_median_s"].get("ours")),
        f"{median['ours'] / row['floor_s']:.1f}",
        "–" if extra is None else f"{extra['ours'] / 1e6:.1f}",
        pair["baseline"],
        "–" if row["ratio"] is None else f"{row['ratio']:.1f}",
        ", ".join(wishes) or "–",
        {None: "–", True: "yes", False: "NO"}[row["met"]],
    ]


def show(result: Json) -> None:
    """The table, the ceilings under it, and the memory."""
    machine, ceilings = result["machine"], result["ceilings"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    print_table(f"Operators on {where}", COLUMNS, [cells(row) for row in result["rows"]])
    baselines = dict.fromkeys((row["operator"], row["baseline"]) for row in result["rows"] if row["baseline"])
    for row in result["rows"]:
        if "baseline_refusal" in row:
            print(f"no baseline, {row['operator']} {row['dtype']} {row['layout']}: {row['baseline_refusal']}")
    print("baselines: " + "; ".join(f"{operator}: {name}" for operator, name in baselines))
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in ceilings["matrix_operations"].items())
    print(f"floors: copies {ceilings['bandwidth'] / 1e9:.4g} GB/s, matrix products in TFLOP/s: {rates}")
    if not result["compiled"]:
        print("no compiled operators here: `ours` is the PyTorch reference")
    for room, memory in result["memory"].items():
        if "error" in memory:
            print(memory["error"])
            continue
        ours, reference = (memory["peak_bytes"][which] / 1e6 for which in ("ours", "reference"))
        goal = {
            None: "",
            True: f"; goal <= {MEMORY_GOAL / 1e6:g} MB met",
            False: f"; goal <= {MEMORY_GOAL / 1e6:g} MB NOT met",
        }
        print(f"memory of {room} beyond its inputs: {ours:.1f} MB, reference {reference:.1f} MB{goal[memory['met']]}")


def verdict(rows: Sequence[Json]) -> str:
    """All cases in one line."""
    failed = [f"{row['operator']} {row['dtype']} {row['layout']}" for row in rows if "error" in row]
    judgements = [row["met"] for row in rows if row.get("met") is not None]
    wrong = f", {len(failed)} failed ({'; '.join(failed)})" if failed else ""
    return f"{len(rows)} cases{wrong}, {sum(judgements)} of {len(judgements)} goals met"


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when a case could not run; 2 when there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.benchmark", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=tuple(OPERATORS), default=(), metavar="ROOM")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=0, help="timed calls of each (default: 9 on a CPU, 30 on a GPU)")
    parser.add_argument("--demo", action="store_true", help="the demo's sizes; goals are for the full ones")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: no NVIDIA GPU that PyTorch can use; --device cpu measures the CPU")
        return 2
    sizes = inputs.QUICK if options.quick else inputs.DEMO if options.demo else inputs.FULL
    keep = partial(write_json, options.json) if options.json else lambda result: None
    result = benchmark(torch.device(options.device), sizes, options.only, options.rounds, keep)
    show(result)
    print(verdict(result["rows"]))
    return int(any("error" in row for row in result["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
