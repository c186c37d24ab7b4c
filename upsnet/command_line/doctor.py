"""What predictions run with on this machine, and why: one line each, the kernels first."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import typer

from upsnet import DISTRIBUTION
from upsnet.device import gpu_names
from upsnet.errors import first_line
from upsnet.kernels.choice import Kernels, find_kernels
from upsnet.kernels.tools import find_tool
from upsnet.machine import machine_facts

SLOW = 1  # exit status
ABSENT = f"not installed: pip install '{DISTRIBUTION}[onnxruntime]'"


def main() -> None:
    """Say which kernels ONNX Runtime runs the operators with here, and why; compile them if that was not done yet. What
    is wrong with an engine says `upsnet engine explain`.

    Exit status 1: function bodies serve, which are slower, and UPSNET_KERNELS=off does not say that it is meant.
    """
    found = list(kernels_here())
    for where, kernels in found:
        print(f"kernels{where}: {kernels}{details(kernels.library)}")
    facts = machine_facts()
    print(f"onnxruntime: {onnxruntime_here()}")
    print(f"cpu: {facts['cpu']}, {facts['cores']} cores")
    print(f"gpu: {', '.join(gpu_names()) or 'no NVIDIA GPU'}")
    print(f"compiler: {version_of(os.environ.get('CXX') or find_tool('c++', 'g++'))}")
    print(f"cmake: {version_of(find_tool('cmake'))}; with {find_tool('make', 'ninja') or 'neither make nor ninja'}")
    if not all(kernels.library or kernels.is_meant for _, kernels in found):
        raise typer.Exit(SLOW)


def kernels_here() -> Iterator[tuple[str, Kernels]]:
    """Of the CPU's sessions, and of the GPU's where ONNX Runtime has CUDA; each registered, as a session does it."""
    if importlib.util.find_spec("onnxruntime") is None:
        yield "", Kernels(None, f"onnxruntime is {ABSENT}")
        return
    import onnxruntime

    from upsnet.runtimes.onnx_runtime import problem_with_cuda, registered

    onnxruntime.disable_telemetry_events()
    yield "", registered(find_kernels())
    if problem_with_cuda() is None:
        yield " on the GPU", registered(find_kernels(gpu=0))


def onnxruntime_here() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        return ABSENT
    import onnxruntime

    return f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"


def details(library: Path | None) -> str:
    """The level of x86-64 that a library runs at, and where it lies."""
    if library is None:
        return ""
    level = getattr(ctypes.CDLL(str(library)), "upsnet_cpu_level", None)
    return f"{f' at x86-64-v{level()}' if level else ''}, {library}"


def version_of(command: str | None) -> str:
    """A program's first line about itself."""
    if command is None:
        return "not found"
    try:
        asked = [*shlex.split(command), "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True, errors="replace").stdout
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return f"{command} does not run: {first_line(error)}"
    return f"{command}, {said.strip().partition(os.linesep)[0]}"
