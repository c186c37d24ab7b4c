"""NVIDIA's driver on this machine: whether it works, why not, and which GPUs it has. It allocates nothing."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from upsnet import device

PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"
DISPLAY = "0x03"  # the class of a PCI device begins so: a GPU
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NO_DEVICE = 100
CURES = {  # of cuInit's errors; NVIDIA's words for them help nobody
    "CUDA_ERROR_STUB_LIBRARY": "the toolkit's stub of libcuda is found first: take .../lib64/stubs off LD_LIBRARY_PATH",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU for itself: see `nvidia-smi`",
    "CUDA_ERROR_SYSTEM_NOT_READY": "`systemctl start nvidia-fabricmanager`, which GPUs with NVSwitch wait for",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while it was in use: restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "take CUDA's folder compat off LD_LIBRARY_PATH; this GPU has none",
    "CUDA_ERROR_UNKNOWN": "`nvidia-modprobe -u`, or in a container the devices /dev/nvidia* (`--gpus all`)",
}


class Gpu(NamedTuple):
    name: str
    compute_capability: str  # as "90"
    memory: int  # bytes


class Driver(NamedTuple):
    """problem: why no GPU can be used, "" where one can; cure: what may mend it; gpus: by their numbers.

    has_gpu: whether this machine has an NVIDIA GPU, as far as that can be seen without the driver.
    """

    problem: str = ""
    cure: str = ""
    has_gpu: bool = False
    cuda: tuple[int, int] | None = None  # the newest version of CUDA that it runs
    gpus: tuple[Gpu, ...] = ()


def find_driver() -> Driver:
    """The driver as it is now."""
    has_gpu = device.DRIVER.exists() or _on_the_bus()
    try:
        cuda = ctypes.CDLL(device.DRIVER_LIBRARY)
    except OSError as error:
        if not has_gpu:
            return Driver("this machine has no NVIDIA GPU that is visible here", has_gpu=False)
        if not device.DRIVER.exists():
            return Driver("there is an NVIDIA GPU, and no driver for it", "install NVIDIA's driver", True)
        cure = "in a container start it with `--gpus all`; else install the driver's libcuda"
        return Driver(f"the library of NVIDIA's driver does not load ({error})", cure, True)
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        number.value = 0
    version = (number.value // 1000, number.value % 1000 // 10) if number.value else None
    if status := cuda.cuInit(0):
        return _refused(cuda, status, has_gpu, version)
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, number) for number in range(count.value))
    return Driver("" if gpus else "the driver knows no GPU", "", bool(gpus), version, gpus)


def gpu_problem() -> str | None:
    """Why no NVIDIA GPU can be used here, and what may mend it; None where one can."""
    found = find_driver()
    return "; ".join(filter(None, (found.problem, found.cure))) if found.problem else None


def _on_the_bus() -> bool:
    def text(path: Path) -> str:
        try:
            return path.read_text()
        except OSError:
            return ""

    return any(
        text(each / "vendor").startswith(NVIDIA) and text(each / "class").startswith(DISPLAY) for each in PCI.glob("*")
    )


def _refused(cuda: ctypes.CDLL, status: int, has_gpu: bool, version: tuple[int, int] | None) -> Driver:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if status == NO_DEVICE and hidden is not None:
        return Driver(f"no GPU is visible: CUDA_VISIBLE_DEVICES={hidden}", "unset it", has_gpu, version)
    text = ctypes.c_char_p()
    named = cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value
    name = named.decode(errors="replace") if named else f"error {status}"
    cure = CURES.get(name, "see what `nvidia-smi` says")
    return Driver(f"NVIDIA's driver does not start: {name}", cure, has_gpu or status != NO_DEVICE, version)


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    handle, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), number)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}{minor.value}", memory.value)
