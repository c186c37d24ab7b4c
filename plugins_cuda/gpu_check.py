"""Builds the operators for this machine's NVIDIA GPU, checks them there and measures them: `make gpu-check`.

    python -m plugins_cuda.gpu_check --out runs/gpu_check [--engine FILE --plugins LIBRARY]

Needs a GPU, PyTorch with torchvision, nvcc, g++ and CMake; no network, and no virtual environment. What else a step
wants and does not find makes it a skipped step, with the reason. Every step is a process of its own, so that one that
fails, hangs or breaks the GPU's context leaves the others alone; its output is in OUT/<step>.log. The summary is
OUT/gpu_check.json. Exit status: 0, 1 when a step failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from plugins_cuda import library
from plugins_cuda.benchmark.report import print_table
from upsnet.files import write_json
from upsnet.machine import machine_facts, package_versions

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 500
TESTS_NEED = ("pytest", "hypothesis", "onnx", "onnxruntime", "onnxscript", "pydantic", "typer", "PIL")


class Skip(Exception):
    """A step that cannot be done here; the text says why."""


@dataclass(frozen=True)
class Step:
    """One part of the check. `run` returns what to say of it; it raises Skip, or anything else when it failed."""

    name: str
    run: Callable[[], str]


@dataclass(frozen=True)
class Outcome:
    """How a step ended: passed, failed or skipped."""

    name: str
    status: str
    seconds: float
    detail: str


def run_steps(steps: Sequence[Step]) -> list[Outcome]:
    """All of them, whatever happens to one."""
    outcomes = []
    for step in steps:
        print(f"{step.name} ...", flush=True)
        start = time.perf_counter()
        try:
            status, detail = "passed", step.run()
        except Skip as reason:
            status, detail = "skipped", str(reason)
        except Exception as error:
            status, detail = "failed", f"{error}" or type(error).__name__
        outcomes.append(Outcome(step.name, status, round(time.perf_counter() - start, 2), detail))
        print(f"{step.name}: {status}, {detail}", flush=True)
    return outcomes


def run_logged(
    name: str, command: Sequence[str], out: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and last line of a command, which runs in the project's folder; all of its output is in a log.
    RuntimeError when it takes longer than TIMEOUT_S."""
    log = out / f"{name}.log"
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                list(command),
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"stopped after {TIMEOUT_S} s, see {log}") from None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else ""


def must_pass(name: str, command: Sequence[str], out: Path, environment: Mapping[str, str] | None = None) -> str:
    """The last line of a command that must end with 0."""
    status, last = run_logged(name, command, out, environment)
    if status != 0:
        raise RuntimeError(f"exit status {status}: {last} (see {out / name}.log)")
    return last


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


# --- the steps -------------------------------------------------------------------------------------------------------


def all_steps(device: torch.device, out: Path, engine: Path | None = None, plugins: Path | None = None) -> list[Step]:
    """In the order in which a failure explains the next one."""
    return [
        Step("build", lambda: build(device)),
        Step("kernels", lambda: kernels(device, out)),
        Step("pytest", lambda: tests(out, "pytest", "gpu", "tests/plugins_cuda")),
        Step("memcheck", lambda: sanitize("memcheck", device, out)),
        Step("racecheck", lambda: sanitize("racecheck", device, out)),
        Step("enqueue", lambda: enqueue(out)),
        Step("rtx_engine", lambda: rtx_engine(engine, plugins, out)),
        Step("benchmark", lambda: benchmark(device, out)),
    ]


def build(device: torch.device) -> str:
    architecture = library.gpu_architecture(device) if device.type == "cuda" else ""
    path = library.load(device.type, architecture).path
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


def kernels(device: torch.device, out: Path) -> str:
    full = ["--full"] if device.type == "cuda" else []
    return must_pass("kernels", python("-m", "plugins_cuda.kernel_suite", "--device", device.type, *full), out)


def tests(out: Path, name: str, marker: str, path: str) -> str:
    """The project's own tests of this marker."""
    missing = [module for module in TESTS_NEED if find_spec(module) is None]
    if missing:
        raise Skip(f"not installed: {', '.join(missing)}")
    return must_pass(name, python("-m", "pytest", path, "-q", "-m", marker, "-p", "no:cacheprovider"), out)


def sanitize(tool: str, device: torch.device, out: Path) -> str:
    """The small checks under compute-sanitizer, every tensor an allocation of its own so that none hides another's end.
    CUDA graphs could then not allocate: left out."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/compute-sanitizer"
    )
    if program is None:
        raise Skip("compute-sanitizer is not on PATH")
    suite = python("-m", "plugins_cuda.kernel_suite", "--device", device.type, "--no-graphs")
    options = ["--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=upsnet"]
    return must_pass(tool, [program, *options, *suite], out, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def enqueue(out: Path) -> str:
    """The TensorRT plugins' enqueue() on this GPU, through the tests' harness, which stands for TensorRT."""
    if not os.environ.get("TENSORRT_INCLUDE_DIR") and not os.environ.get("UPSNET_OPERATORS"):
        raise Skip("set TENSORRT_INCLUDE_DIR (folder of NvInfer.h), or UPSNET_OPERATORS (what `make plugins` made)")
    return tests(out, "enqueue", "gpu or tensorrt", "tests/plugins_cuda/tensorrt")


def rtx_engine(engine: Path | None, plugins: Path | None, out: Path) -> str:
    """Whether a TensorRT-RTX engine with the plugins runs here: either answer is one, so it never fails the check."""
    if find_spec("tensorrt_rtx") is None and find_spec("tensorrt_rtx_bindings") is None:
        raise Skip("TensorRT-RTX is not installed")
    if engine is None or plugins is None:
        raise Skip("no --engine and --plugins were given")
    status, last = run_logged("rtx_engine", python("-m", "plugins_cuda.rtx_engine", str(engine), str(plugins)), out)
    return last if status == 0 else f"it does not run here: exit status {status}, {last}"


def benchmark(device: torch.device, out: Path) -> str:
    """The table is in the log, and printed; a goal that is not met does not fail the check."""
    path = out / "benchmark.json"
    try:
        command = python("-m", "plugins_cuda.benchmark", "--device", device.type, "--json", str(path))
        must_pass("benchmark", command, out)
    finally:
        print((out / "benchmark.log").read_text(errors="replace"))
    return f"written to {path}"


# --- the report ------------------------------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, object]:
    """What this was run on."""
    facts: dict[str, object] = {**machine_facts(), "versions": package_versions(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["architecture"] = library.gpu_architecture(device)
        facts["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts["nvcc"] = _output(os.environ.get("CUDACXX", "nvcc"), "--version")
    facts["cmake"] = _output("cmake", "--version")
    return facts


def _output(*command: str) -> str:
    """The line of a program's answer that holds its version."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    return next((line for line in lines if "release" in line), lines[0] if lines else "no answer")


def check(device: torch.device, out: Path, steps: Sequence[Step]) -> int:
    """Runs the steps, prints and writes the summary; the exit status."""
    facts = environment(device)
    print_table("This machine", ("what", "value"), [(key, str(value)) for key, value in facts.items()])
    outcomes = run_steps(steps)
    rows = [(o.name, o.status, f"{o.seconds:.1f}", o.detail) for o in outcomes]
    print_table("GPU check", ("step", "status", "seconds", "detail"), rows)
    summary = {"environment": facts, "steps": [asdict(outcome) for outcome in outcomes]}
    write_json(out / "gpu_check.json", summary)
    print(f"written to {out / 'gpu_check.json'}")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.gpu_check")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--engine", type=Path, help="a TensorRT-RTX engine with the plugins in it, to try it here")
    parser.add_argument("--plugins", type=Path, help="libupsnet_plugins.so")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no NVIDIA GPU that PyTorch can use; `make test` checks the kernels without one", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    return check(device, out, all_steps(device, out, options.engine, options.plugins))


if __name__ == "__main__":
    raise SystemExit(main())
