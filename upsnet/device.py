"""What computes: one word with one meaning in every command and in `upsnet.load`.

"cpu"; "cuda:1", the second NVIDIA GPU; "cuda", the first; "auto", the first where the runtime has one that works, else
the CPU. A GPU that is asked for by name and cannot be had is an error, never the CPU.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from upsnet.errors import InputError

AUTO = "auto"  # what nobody chose
DRIVER = Path("/proc/driver/nvidia")
DRIVER_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"

logger = logging.getLogger("upsnet")


class Device(NamedTuple):
    """A word that was understood. number: of the GPU, from 0."""

    kind: Literal["auto", "cpu", "cuda"]
    number: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.number}" if self.kind == "cuda" else self.kind


def parse_device(word: object) -> Device:
    """InputError for anything but auto, cpu, cuda and cuda:N."""
    found = re.fullmatch(r"(auto|cpu|cuda)|cuda:([0-9]{1,3})", word) if isinstance(word, str) else None
    if found is None:
        raise InputError(f"device {word!r}: use auto, cpu, cuda or cuda:N")
    return Device(found[1] or "cuda", int(found[2] or 0))  # type: ignore[arg-type]


def warn_of_unused_gpu(framework: str, reason: str) -> None:
    """For "auto" on the CPU: one line, where this machine has an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and (DRIVER.exists() or shutil.which("nvidia-smi")):
        logger.warning(
            "this machine has an NVIDIA GPU that %s cannot use (%s): the CPU computes instead", framework, reason
        )


def gpu_names() -> list[str]:
    """The NVIDIA GPUs that the machine's driver knows, in the order of their slots; [] where there is none."""
    files = sorted((DRIVER / "gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def compute_capability(number: int) -> str:
    """Of an NVIDIA GPU, as "90"; "" where the driver does not tell it."""
    major, minor, gpu = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return ""
    status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(gpu), number)
    for attribute, value in ((75, major), (76, minor)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
    return "" if status else f"{major.value}{minor.value}"
