"""The steps of the check, the most telling first: whoever is cut short has the most."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from plugins_cuda import library
from plugins_cuda.gpu_check.process import ROOT, Skip, must_pass, run_logged
from plugins_cuda.gpu_check.profile import profile as profile_kernels
from plugins_cuda.gpu_check.sanitizers import sanitize
from upsnet.kernels.tools import find_tool

CUDA_PROVIDER = "CUDAExecutionProvider"
TESTS_NEED = ("pytest", "hypothesis", "onnx", "onnxruntime", "onnxscript", "pydantic", "typer", "PIL")


@dataclass(frozen=True)
class Step:
    """One part of the check.

    run: given the time.monotonic() at which it must have ended, does it and returns what to say of it. It raises Skip
    where it cannot be done, or anything else when it failed.
    most: seconds that it may take. least: seconds under which it is not worth starting.
    """

    name: str
    what: str
    run: Callable[[float], str]
    most: float
    least: float = 15


@dataclass(frozen=True)
class Machine:
    """Where the steps run and what they leave. rehearsed: on the CPU with tiny inputs, where there is no GPU."""

    out: Path
    rehearsed: bool = False
    engine: Path | None = None
    plugins: Path | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearsed else "cuda")

    @property
    def architecture(self) -> str:
        return "" if self.rehearsed else library.gpu_architecture(self.device)

    def python(self, name: str, *arguments: str, deadline: float) -> str:
        """The last line of a Python command that must pass; its output is in OUT/<name>.log."""
        return must_pass([sys.executable, *arguments], self.out / f"{name}.log", deadline)


def all_steps(machine: Machine) -> list[Step]:
    """In their order."""

    def step(name: str, what: str, run: Callable[[Machine, float], str], most: float, least: float = 15) -> Step:
        return Step(name, what, partial(run, machine), 4 * most if machine.rehearsed else most, least)

    return [
        step("build", "compiles the kernels for this GPU", build, 240),
        step("kernels", "every operator against its definition, small to full size, in CUDA graphs", kernels, 150),
        step("enqueue", "the TensorRT plugins' enqueue(), called as TensorRT does by a C++ program", enqueue, 150),
        step("onnxruntime", "every operator as a node of ONNX Runtime's CUDA provider", onnx_runtime, 150),
        step("benchmark", "times beside the machine's limits and beside torchvision", benchmark, 150),
        step(
            "profile",
            "each kernel: duration, occupancy, bytes, issue slots (ncu, nsys or torch.profiler)",
            profile,
            150,
        ),
        step("training", "one step of training that may not wait for the GPU", training, 120),
        step("pytest", "the tests that are marked gpu", tests, 180),
        *(
            step(tool, f"compute-sanitizer's {tool} on the kernels", partial(check_memory, tool), 150, 25)
            for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
        ),
        step("rtx_engine", "a TensorRT-RTX engine that holds the plugins (--engine, --plugins)", rtx_engine, 60),
    ]


def build(machine: Machine, deadline: float) -> str:
    """As the first call of an operator would."""
    name, architecture = machine.device.type, machine.architecture
    code = f"from plugins_cuda import library; print(library.load({name!r}, {architecture!r}).path)"
    path = Path(machine.python("build", "-c", code, deadline=deadline))
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


def kernels(machine: Machine, deadline: float) -> str:
    sizes = ["small"] if machine.rehearsed else ["small", "middle", "full"]
    suite = ["-m", "plugins_cuda.kernel_suite", "--device", machine.device.type, "--size", *sizes]
    return machine.python("kernels", *suite, deadline=deadline)


def enqueue(machine: Machine, deadline: float) -> str:
    """Needs no TensorRT: the program is built with the plugins, and stands for it."""
    cmake, target, compiler = find_tool("cmake"), "upsnet_enqueue_check", []
    if machine.rehearsed:
        target, compiler = "upsnet_enqueue_check_emulated", ["-DCMAKE_CUDA_COMPILER=NOTFOUND"]
    if cmake is None or not (machine.rehearsed or os.environ.get("CUDACXX")):  # which CMake reads, with its flags
        raise Skip(f"{'nvcc' if cmake else 'cmake'} was not found")
    folder, out = ROOT / "build" / "gpu_check" / target, machine.out
    options = [*compiler, f"-DCMAKE_CUDA_ARCHITECTURES={machine.architecture}"]
    options.append(f"-DPython3_EXECUTABLE={sys.executable}")
    configure = [cmake, "-S", str(ROOT / "plugins_cuda"), "-B", str(folder), *options]
    must_pass(configure, out / "enqueue_configure.log", deadline)
    make = [cmake, "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1)]
    must_pass(make, out / "enqueue_build.log", deadline)
    return must_pass([str(folder / target)], out / "enqueue.log", deadline)


def onnx_runtime(machine: Machine, deadline: float) -> str:
    """In a session on the GPU alone, in sizes, threads and CUDA graphs; rehearsed: the emulator's kernels."""
    missing = [module for module in ("onnx", "onnxruntime") if find_spec(module) is None]
    if not missing and not machine.rehearsed:
        import onnxruntime

        missing = [] if CUDA_PROVIDER in onnxruntime.get_available_providers() else ["onnxruntime with CUDA"]
    if missing:
        raise Skip(f"not installed: {', '.join(missing)}; `pip install onnx onnxruntime-gpu`, without onnxruntime")
    device = "emulated" if machine.rehearsed else "cuda"
    check = ["-m", "plugins_cuda.onnxruntime_check", "--device", device]
    return machine.python("onnxruntime", *check, deadline=deadline)


def benchmark(machine: Machine, deadline: float) -> str:
    """The table is printed, too. A goal that is not met does not fail the check."""
    path = machine.out / "benchmark.json"
    quick = ["--quick", "--rounds", "1"] if machine.rehearsed else []
    arguments = ["--device", machine.device.type, "--json", str(path), *quick]
    try:
        return machine.python("benchmark", "-m", "plugins_cuda.benchmark", *arguments, deadline=deadline)
    finally:
        print((machine.out / "benchmark.log").read_text(errors="replace"), flush=True)


def profile(machine: Machine, deadline: float) -> str:
    if machine.rehearsed:
        raise Skip("needs a GPU")
    return profile_kernels(sys.executable, machine.out, deadline)


def training(machine: Machine, deadline: float) -> str:
    said = machine.python(
        "training", "-m", "training.gpu_step_check", "--device", machine.device.type, deadline=deadline
    )
    left_out = "training step: skipped, "
    if said.startswith(left_out):
        raise Skip(said.removeprefix(left_out))
    return said


def tests(machine: Machine, deadline: float) -> str:
    missing = [module for module in TESTS_NEED if find_spec(module) is None]
    if missing:
        raise Skip(f"not installed: {', '.join(missing)}")
    if machine.rehearsed:
        raise Skip("needs a GPU")
    arguments = ["-m", "pytest", "tests/plugins_cuda", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    return machine.python("pytest", *arguments, deadline=deadline)


def check_memory(tool: str, machine: Machine, deadline: float) -> str:
    if machine.rehearsed:
        raise Skip("needs a GPU; `make sanitize` checks the kernels' text without one")
    return sanitize(tool, sys.executable, machine.out, deadline)


def rtx_engine(machine: Machine, deadline: float) -> str:
    """Whether the engine runs here: either answer is one, so it never fails the check."""
    if find_spec("tensorrt_rtx") is None and find_spec("tensorrt_rtx_bindings") is None:
        raise Skip("TensorRT-RTX is not installed")
    if machine.engine is None or machine.plugins is None:
        raise Skip("no --engine and --plugins were given")
    command = [sys.executable, "-m", "plugins_cuda.rtx_engine", str(machine.engine), str(machine.plugins)]
    ended = run_logged(command, machine.out / "rtx_engine.log", deadline)
    return ended.last if ended.status == 0 else f"it does not run here: {ended.fault()}"
