"""NVIDIA's driver on this machine: whether it works, why not and what mends it, and which GPUs it has."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from upsnet import device

# cuInit's errors, of which NVIDIA's words help nobody.
CURES = {
    "CUDA_ERROR_STUB_LIBRARY": "the toolkit's stub of libcuda is found first: take .../lib64/stubs off LD_LIBRARY_PATH",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU for itself: see `nvidia-smi`",
    "CUDA_ERROR_SYSTEM_NOT_READY": "`systemctl start nvidia-fabricmanager`, which GPUs with NVSwitch wait for",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while it was in use: restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "take CUDA's folder compat off LD_LIBRARY_PATH: not for this GPU",
    "CUDA_ERROR_UNKNOWN": "`nvidia-modprobe -u`, or in a container the devices /dev/nvidia* (--gpus all)",
    "CUDA_VISIBLE_DEVICES": "unset that",
}


class Gpu(NamedTuple):
    name: str
    compute_capability: str  # as "90"
    memory: int  # bytes


class Driver(NamedTuple):
    """problem: why no GPU can be used, "" where one can; cure: what may mend that; gpus: by their numbers.

    has_gpu: whether this machine has an NVIDIA GPU, as far as that can be seen without its driver.
    """

    problem: str = ""
    cure: str = ""
    has_gpu: bool = False
    cuda: tuple[int, int] | None = None  # the newest version of CUDA that it runs
    gpus: tuple[Gpu, ...] = ()


def find_driver() -> Driver:
    """The driver as it is now. Nothing is allocated on a GPU."""
    version = device.driver_version()
    cuda = None if not version else (int(version.partition(".")[0]), int(version.partition(".")[2]))
    problem, _, cure = (device.gpu_problem() or "").partition("; ")
    if not problem:
        return Driver(has_gpu=True, cuda=cuda, gpus=_gpus())
    cure = next((words for name, words in CURES.items() if name in problem), cure or "see what `nvidia-smi` says")
    return Driver(problem, cure, device.shows_gpu() or "does not work" in problem, cuda)


def _gpus() -> tuple[Gpu, ...]:
    cuda, count = ctypes.CDLL(device.DRIVER_LIBRARY), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_gpu(cuda, number) for number in range(count.value))


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    handle, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), number)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    return Gpu(name.value.decode(errors="replace"), device.compute_capability(number), memory.value)
