"""python -m plugins_cuda.gpu_check [--out FOLDER] [--steps build,kernels,...] [--minutes 10] [--list] [--rehearse]

Needs a GPU, PyTorch with torchvision, nvcc, g++ and CMake; no network, and no virtual environment. What else a step
wants and does not find makes it a skipped step, with the reason. Every step is a process of its own, so that one that
fails, hangs or breaks the GPU's context leaves the others alone; its output is in OUT/<step>.log. The summary,
OUT/gpu_check.json, is written after every step. Exit status: 0, 1 when a step failed or the summary could not be
written, 2 without a GPU and when every step was skipped, 128 and the signal's number when interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from plugins_cuda.benchmark.report import print_table
from plugins_cuda.gpu_check.process import Interrupted, Skip, interruptible
from plugins_cuda.gpu_check.steps import Machine, Step, all_steps
from upsnet.files import WriteError, write_json
from upsnet.kernels.tools import find_tool
from upsnet.machine import machine_facts, package_versions

MINUTES = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a step ended: passed, failed or skipped; or that it is running."""

    name: str
    status: str
    seconds: float
    detail: str


Report = Callable[[Sequence[Outcome]], None]


def run_steps(steps: Sequence[Step], minutes: float, report: Report) -> list[Outcome]:
    """All of them, whatever happens to one, for as long as there is time. `report` gets what there is, at each change.
    Interrupted, when somebody asks to end, once that was reported."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + 60 * minutes
    for step in steps:
        print(f"{step.name} ...", flush=True)
        report([*outcomes, Outcome(step.name, "running", 0.0, "")])
        start = time.monotonic()
        try:
            outcomes.append(_outcome(step, end))
        except Interrupted as signal_name:
            outcomes.append(Outcome(step.name, "failed", round(time.monotonic() - start, 2), f"ended by {signal_name}"))
            raise
        finally:
            report(outcomes)
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].detail}", flush=True)
    return outcomes


def _outcome(step: Step, end: float) -> Outcome:
    start = time.monotonic()
    try:
        if end - start < step.least:
            raise Skip(
                f"less than {step.least:.0f} s are left; --minutes gives more, --steps {step.name} does it alone"
            )
        status, detail = "passed", step.run(min(start + step.most, end))
    except Skip as reason:
        status, detail = "skipped", str(reason)
    except Exception as error:
        status, detail = "failed", f"{error}" or type(error).__name__
    return Outcome(step.name, status, round(time.monotonic() - start, 2), detail)


def environment(machine: Machine) -> dict[str, object]:
    """What this was run on."""
    facts: dict[str, object] = {**machine_facts(), "versions": package_versions(), "cuda": torch.version.cuda}
    if machine.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(machine.device)
        facts["architecture"] = machine.architecture
        facts["memory_bytes"] = torch.cuda.get_device_properties(machine.device).total_memory
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts["nvcc"] = _output(*shlex.split(os.environ.get("CUDACXX", "nvcc")), "--version")
    for name in ("cmake", "compute-sanitizer", "ncu", "nsys"):
        facts[name] = _output(find_tool(name) or name, "--version")
    return facts


def _output(*command: str) -> str:
    """The line of a program's answer that holds its version."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    return next(
        (line for line in lines if re.search("release|version", line, re.I)), lines[0] if lines else "no answer"
    )


def check(machine: Machine, steps: Sequence[Step], minutes: float = MINUTES) -> int:
    """Runs the steps, prints and writes the summary; the exit status."""
    facts = environment(machine)
    print_table("This machine", ("what", "value"), [(key, str(value)) for key, value in facts.items()])
    path, outcomes, unwritten = machine.out / "gpu_check.json", list[Outcome](), ""

    def report(so_far: Sequence[Outcome]) -> None:
        """A full disk ends nothing: the next step may say all the same what it finds."""
        nonlocal unwritten
        outcomes[:], before = so_far, unwritten
        try:
            write_json(path, {"environment": facts, "steps": [asdict(outcome) for outcome in so_far]})
            unwritten = ""
        except WriteError as error:
            unwritten = str(error)
            if unwritten != before:
                print(f"error: {unwritten}", file=sys.stderr, flush=True)

    interrupted = 0
    with interruptible():
        try:
            run_steps(steps, minutes, report)
        except Interrupted as signal_name:
            interrupted = 128 + signal.Signals[str(signal_name)]
        rows = [(o.name, o.status, f"{o.seconds:.1f}", o.detail) for o in outcomes]
        print_table("GPU check", ("step", "status", "seconds", "detail"), rows)
        print(unwritten or f"written to {path}", flush=True)
    statuses = {outcome.status for outcome in outcomes}
    if not interrupted and statuses == {"skipped"}:
        print("error: every step was skipped: nothing was checked", file=sys.stderr)
        return 2
    return interrupted or int("failed" in statuses or unwritten != "")


def chosen(names: Sequence[str], text: str) -> list[str]:
    """The names in a comma-separated list."""
    wanted = [name for name in text.split(",") if name]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'none'}: no such step; there are {', '.join(names)}")
    return wanted


def folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is wanted")
    return Path(text).resolve()


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    names = [step.name for step in all_steps(Machine(Path()))]
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.gpu_check")
    parser.add_argument("--out", type=folder, default="runs/gpu_check")
    parser.add_argument("--steps", type=lambda text: chosen(names, text), default=names, help="comma-separated")
    parser.add_argument("--minutes", type=positive, default=MINUTES, help="steps for which no time is left are skipped")
    parser.add_argument("--list", action="store_true", help="print the steps")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on the CPU, with tiny inputs")
    parser.add_argument("--engine", type=Path, help="a TensorRT-RTX engine with the plugins in it, to try it here")
    parser.add_argument("--plugins", type=Path, help="libupsnet_plugins.so")
    options = parser.parse_args(arguments)
    engine, plugins = (path and path.resolve() for path in (options.engine, options.plugins))
    machine = Machine(options.out, options.rehearse, engine, plugins)
    steps = [step for step in all_steps(machine) if step.name in options.steps]
    if options.list:
        print_table("Steps", ("step", "what"), [(step.name, step.what) for step in steps])
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print("error: no NVIDIA GPU that PyTorch can use; `make test` checks the kernels without one, and --rehearse "
              "tries this check", file=sys.stderr)  # fmt: skip
        return 2
    nvcc = find_tool("nvcc")
    if nvcc is not None:  # which need not be on the PATH: every step takes this one
        os.environ.setdefault("CUDACXX", nvcc)
    try:
        machine.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {machine.out} cannot be a folder: {error.strerror}")
    return check(machine, steps, options.minutes)


if __name__ == "__main__":
    raise SystemExit(main())
