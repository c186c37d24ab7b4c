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
PCI = Path("/sys/bus/pci/devices")
DRIVER_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CONTAINER = "; in a container, start that with the GPUs (--gpus all)"

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


def gpu_problem() -> str | None:
    """Why no NVIDIA GPU can be used here: there is none, it is hidden, or which part of its driver is missing or
    broken. None: one can be used. Nothing but the driver is asked."""
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        if DRIVER.exists():
            return f"the NVIDIA driver is loaded, but its library is not usable ({error}){CONTAINER}"
        if _pci_gpus():
            return f"there is an NVIDIA GPU, but no driver for it ({DRIVER_LIBRARY} is missing){CONTAINER}"
        return "there is no NVIDIA GPU"
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, NO_DEVICE):
        return f"the NVIDIA driver does not work: {_cuda_words(cuda, status)}"
    if status == 0 and count.value:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} hides every NVIDIA GPU"
    return f"the NVIDIA driver finds no GPU{CONTAINER}" if gpu_names() or _pci_gpus() else "there is no NVIDIA GPU"


def shows_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, as far as its kernel shows that, whatever the driver says."""
    return DRIVER.exists() or _pci_gpus() > 0


def driver_version() -> str:
    """The CUDA version that the NVIDIA driver is for, as "13.0"; "" where there is none."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL(DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return ""
    return "" if status else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _pci_gpus() -> int:
    """How many display controllers of NVIDIA's the PCI buses hold, with a driver or without."""
    found = 0
    for folder in PCI.glob("*"):
        try:
            vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == "0x10de" and kind.startswith("0x03")
    return found


def _cuda_words(cuda: ctypes.CDLL, status: int) -> str:
    """Of a status of the driver: its name and what it means, as far as the driver itself says so."""
    words = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        if function(status, ctypes.byref(text)) == 0 and text.value:
            words.append(text.value.decode(errors="replace"))
    return ": ".join(words) or f"error {status}"
