"""What a measurement was made on: written beside every time and every parity figure."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upsnet.device import gpu_names

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


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
