"""What a measurement was made on: written beside every time and every parity figure."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upsnet.device import gpu_names

CPU = Path("/proc/cpuinfo")
# What a level of x86-64 adds to the one before, by the names of /proc/cpuinfo: v2, v3, v4.
LEVELS = (
    {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
)
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow", "tritonclient")


def machine_facts() -> dict[str, str | int]:
    """CPU model, cores this process may use, system; the NVIDIA GPUs where there are some."""
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
    }
    if gpus := gpu_names():
        facts["gpus"] = ", ".join(gpus)
    return facts


def package_versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that take part in a prediction."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_level() -> int | None:
    """The level of x86-64 that this CPU has: 1, 2 (SSE4.2), 3 (AVX2) or 4 (AVX-512). None: no such CPU, or unknown.

    As plugins_cuda/common/levels.cpp chooses one.
    """
    if platform.machine() != "x86_64" or not (flags := set(_cpu_says("flags").split())):
        return None
    level = 1
    for needed in LEVELS:
        if not needed <= flags:
            break
        level += 1
    return level


def _cpu_model() -> str:
    return _cpu_says("model name") or platform.processor() or platform.machine()


def _cpu_says(key: str) -> str:
    """A line of /proc/cpuinfo; "" where there is none."""
    lines = CPU.read_text().splitlines() if CPU.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
