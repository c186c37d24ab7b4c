"""Each kernel beside its operator's floor: durations always, and what the GPU's counters say where they can be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plugins_cuda.benchmark.report import print_table
from plugins_cuda.gpu_check import workload
from plugins_cuda.gpu_check.process import Skip, must_pass, run_logged
from plugins_cuda.gpu_check.traces import METRICS, SEPARATOR, Launch, by_case, from_ncu, from_nsys
from upsnet.errors import first_line
from upsnet.files import read_json, write_json
from upsnet.kernels.tools import find_tool

Json = dict[str, Any]
COLUMNS = ("operator", "type, layout", "kernel", "us", "floor us", "occupancy %", "issue slots %", "DRAM MB", "L2 MB")
# A tool's line that says why it cannot work.
REFUSAL = re.compile(
    r"==ERROR==|ERR_NVGPUCTRPERM|not supported|no permission|unable to|failed to|cannot open", re.IGNORECASE
)


def profile(python: str, out: Path, deadline: float) -> str:
    """OUT/profile.json and a table. PyTorch's profiler or CUDA events measure first, so that there is something; then
    Nsight Compute reads the counters; where it cannot and PyTorch's profiler could not, Nsight Systems is asked."""
    path = out / "profile.json"
    must_pass([python, "-m", workload.__name__, "--json", str(path)], out / "profile.log", deadline)
    result = read_json(path)
    better: list[tuple[str, Callable[[str, Path, float], list[Launch]], tuple[int, int]]]
    better = [("ncu", counted, (0, 1)), ("nsys", traced, (workload.WARM, workload.REPEATS))]
    for name, measure, (warm, repeats) in better:
        if name == "nsys" and result["cases"][0]["source"] != "CUDA events":
            break
        try:
            launches = measure(python, out, deadline)
            kernels = by_case(launches, len(result["cases"]), warm, repeats)
        except Skip as skipped:
            result["refused"][name] = str(skipped)
            continue
        except Exception as error:  # whatever a tool has written, or left half written: the workload's own times stand
            result["refused"][name] = f"its output is not understood: {type(error).__name__}: {first_line(error)}"
            continue
        for case, each in zip(result["cases"], kernels, strict=False):  # fewer, where it was stopped
            case |= {"source": name, "kernels": [asdict(launch) for launch in each]}
        break
    write_json(path, result)
    sources = Counter(case["source"] for case in result["cases"])
    by = ", ".join(f"{count} cases by {source}" for source, count in sources.items())
    print_table(f"Kernels: {by}", COLUMNS, table(result["cases"]))
    for name, reason in result["refused"].items():
        print(f"{name}: {reason}", flush=True)
    notes = "".join(f"; {name}: {reason}" for name, reason in result["refused"].items())
    return f"{by}, written to {path}{notes}"


def counted(python: str, out: Path, deadline: float) -> list[Launch]:
    """With Nsight Compute, which runs each kernel several times, cold. Skip where it cannot."""
    ncu, csv, log = _tool("ncu"), out / "ncu.csv", out / "ncu.log"
    metrics = list(METRICS.values())
    chosen = ["--kernel-name-base", "mangled", "--kernel-name", f"regex:upsnet|{SEPARATOR}"]
    form = ["--csv", "--print-units", "base", "--log-file", str(csv), "--clock-control", "none"]
    program = [python, "-m", workload.__name__, "--warm", "0", "--repeats", "1"]
    while metrics:
        csv.write_text("")
        ended = run_logged([ncu, *form, *chosen, "--metrics", ",".join(metrics), *program], log, deadline)
        said = csv.read_text(errors="replace")
        launches = from_ncu(said)
        if launches:
            return launches
        refusal = _refusal([*said.splitlines(), *ended.lines], ended.fault())
        unknown = [metric for metric in metrics if metric in refusal]
        if not unknown:
            raise Skip(refusal)
        metrics = [metric for metric in metrics if metric not in unknown]  # another version's, or another GPU's
    raise Skip("ncu knows none of the metrics")


def traced(python: str, out: Path, deadline: float) -> list[Launch]:
    """With Nsight Systems. Skip where it cannot."""
    nsys, report = _tool("nsys"), out / "nsys_profile.nsys-rep"
    options = ["--trace=cuda", "--sample=none", "--cpuctxsw=none", "--force-overwrite=true", "-o", str(report)]
    recorded = run_logged([nsys, "profile", *options, python, "-m", workload.__name__], out / "nsys.log", deadline)
    if recorded.status != 0 or not report.is_file():
        raise Skip(_refusal(recorded.lines, recorded.fault()))
    asked = [nsys, "stats", "--report", "cuda_gpu_trace", "--format", "csv", "--output", "-", str(report)]
    listed = run_logged(asked, out / "nsys_stats.log", deadline)
    launches = from_nsys("\n".join(listed.lines))
    if not launches:
        raise Skip(_refusal(listed.lines, listed.fault()))
    return launches


def _tool(name: str) -> str:
    found = find_tool(name)
    if found is None:
        raise Skip("not found")
    return found


def _refusal(lines: Sequence[str], otherwise: str) -> str:
    return next((line.strip() for line in lines if REFUSAL.search(line)), otherwise)


def table(cases: Sequence[Json]) -> list[list[str]]:
    """Two rows or more for each case: the whole beside its floor, then its kernels."""
    rows = []
    for case in cases:
        seconds = sum(kernel["seconds"] for kernel in case["kernels"])
        times = f"{seconds / case['floor_s']:.1f} x" if case["floor_s"] else "–"
        whole = [case["operator"], f"{case['dtype']}, {case['layout']}", times, f"{1e6 * seconds:.1f}"]
        rows.append([*whole, f"{1e6 * case['floor_s']:.1f}", "", "", "", ""])
        for kernel in case["kernels"]:
            name = Launch(kernel["name"], 0).kernel
            counters = kernel["counters"]
            figures = [_figure(counters.get(key), unit) for key, unit in
                       (("occupancy", 1), ("issue_slots", 1), ("dram_bytes", 1e6), ("l2_bytes", 1e6))]  # fmt: skip
            rows.append(["", "", name, f"{1e6 * kernel['seconds']:.1f}", "", *figures])
    return rows


def _figure(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.1f}"
