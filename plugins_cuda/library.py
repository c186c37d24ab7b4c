"""Finding and calling the operators' compiled libraries: the PyTorch binding's way to the kernels.

Three libraries hold the same operators: `cpu` (the CPU fronts), `cuda` (the launchers) and `emulated` (the launchers'
very text, run on the CPU: tests only). Each is compiled on first use and found again afterwards
(upsnet/kernels/building.py). Where a library cannot be had, or no kernel of it can run here, the reference serves, and
a warning says so once. Environment:

UPSNET_OPERATORS=FOLDER    takes the libraries that `make plugins` left in FOLDER; nothing is compiled
UPSNET_CPU_LEVEL=v2, v3 or v4    the highest level of x86-64 that `cpu` may use (docs/cpus.md)
UPSNET_SANITIZE=address,undefined    compiles `cpu` and `emulated` with these sanitizers (`make sanitize`)
CXX, CUDACXX    the compilers
XDG_CACHE_HOME    above the user's cache, where a checkout that is read-only has its libraries
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple  # Any: what a function of a library returns

import torch

from upsnet.kernels import loading
from upsnet.kernels.building import CPU_LEVELS as CPU_LEVELS
from upsnet.kernels.building import SOURCES as SOURCES
from upsnet.kernels.building import BuildError, find_library

REASONS = {  # of a cudaError_t that the libraries return themselves
    1: "sizes or numbers that it does not support",
    2: "not enough memory",
    701: "this GPU has too little shared memory",
    716: "a tensor is not aligned to its elements",
}
OLDEST_GPU = 75  # compute capability 7.5


def compiled(device: torch.device) -> Library | None:
    """The library that runs operators on tensors of this device; None (after one warning) where the reference must."""
    if device.type not in ("cpu", "cuda") or _forced == "reference":
        return None
    name = _forced if _forced and device.type == "cpu" else device.type
    with _lock:
        return _load_or_warn(name, gpu_architecture(device) if device.type == "cuda" else "")


def emulation(name: str = "emulated") -> AbstractContextManager[None]:
    """Inside, operators on CPU tensors run the CUDA kernels' text on the CPU (slow; for tests).

    name: `emulated_sm_75` for what a GPU before sm_80 runs.
    """
    return _forcing(name)


def definitions() -> AbstractContextManager[None]:
    """Inside, operators run their reference: a baseline for benchmarks."""
    return _forcing("reference")


@contextlib.contextmanager
def _forcing(name: str) -> Iterator[None]:
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def gpu_architecture(device: torch.device) -> str:
    """The GPU's compute capability as CMake names it: "90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


_forced = ""  # "emulated", "emulated_sm_75" or "reference": what CPU tensors (reference: all) run; else as the device
_lock = threading.RLock()  # threads of one process take turns to load; processes, by a file's lock, to compile


class _Operator(NamedTuple):
    """One room's functions in a library."""

    start: Callable[..., int]  # upsnet_<room>_cpu, or upsnet_<room>_launch
    workspace_size: Callable[..., int] | None  # None: a CPU front


class Library:
    """One compiled library. Rooms call it with their params struct (a ctypes.Structure, as `launch.h` lays it out)."""

    def __init__(self, name: str, path: Path) -> None:
        """BuildError when the file cannot be loaded."""
        self.name, self.path = name, path
        self._operators: dict[tuple[str, type[ctypes.Structure]], _Operator] = {}
        self._functions = loading.load(path)
        if name == "cuda":
            self._check_driver()

    def _check_driver(self) -> None:
        """BuildError where CUDA's runtime, which is inside the library, cannot work with the driver: CUDA itself would
        say so at the first launch."""
        runtime, driver = ctypes.c_int(), ctypes.c_int()
        try:
            status = self._functions.upsnet_cuda_status(ctypes.byref(runtime), ctypes.byref(driver))
        except AttributeError as error:
            raise BuildError(f"{self.path} is of another version; make it anew") from error
        if status != 0:
            inside, served = (f"{each.value // 1000}.{each.value % 1000 // 10}" for each in (runtime, driver))
            driver_is = f"driver serves up to CUDA {served}" if driver.value else "NVIDIA driver is missing"
            raise BuildError(
                f"{self.path} holds the runtime of CUDA {inside}, and this machine's {driver_is}, "
                f"{self._reason(status)}: update the driver, or set CUDACXX to the nvcc of a toolkit that it serves"
            )

    def _reason(self, status: int) -> str:
        """A launch's error in words, and its number."""
        if self.name == "cpu":
            return f"error {status}"
        words = REASONS.get(status)
        if words is None and self.name == "cuda":
            explain = self._functions.upsnet_error_string
            explain.restype = ctypes.c_char_p
            words = explain(status).decode()
        return f"CUDA error {status}" + (f" ({words})" if words else "")

    def cpu_level(self) -> str:
        """The level of x86-64 that `cpu` runs at in this process: "v3"."""
        return f"v{self._functions.upsnet_cpu_level()}"

    def run(
        self, room: str, params: ctypes.Structure, device: torch.device, workspace: torch.Tensor | None = None
    ) -> None:
        """Queue (cuda: on the current stream) or run (cpu, emulated) one operator. RuntimeError when it cannot run.

        workspace: uint8, at least workspace_size of it, on the device; None: memory of PyTorch's.
        """
        operator, reference, on_gpu = self._operator(room, params), ctypes.byref(params), device.type == "cuda"
        if operator.workspace_size is None:
            status = operator.start(reference, torch.get_num_threads())
        else:
            with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
                needed = operator.workspace_size(reference)
                if workspace is None:
                    # Freed when this returns, perhaps before the kernels ran: PyTorch's allocator hands it only to
                    # later work of the same stream. The same holds for the tensors that a binding converts.
                    workspace = torch.empty(needed, dtype=torch.uint8, device=device)
                if workspace.numel() < needed:
                    raise RuntimeError(f"{room}: it needs a workspace of {needed} bytes, got {workspace.numel()}")
                stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else None
                status = operator.start(reference, workspace.data_ptr(), workspace.numel(), stream)
        if status != 0:
            raise RuntimeError(f"{room}: the {self.name} library could not run it, {self._reason(status)}")

    def workspace_size(self, room: str, params: ctypes.Structure) -> int:
        """Bytes of device memory that one launch works in; a CPU front takes none from its caller."""
        operator = self._operator(room, params)
        return 0 if operator.workspace_size is None else operator.workspace_size(ctypes.byref(params))

    def _operator(self, room: str, params: ctypes.Structure) -> _Operator:
        return self._operators.get((room, type(params))) or self._find(room, type(params))

    def _find(self, room: str, params: type[ctypes.Structure]) -> _Operator:
        """Complete before others see it, so that threads share no half-typed function."""

        def function(what: str, result: type, *arguments: type) -> Callable[..., Any]:
            found = self._functions[f"upsnet_{room}_{what}"]
            found.restype, found.argtypes = result, arguments
            return found

        pointer = ctypes.c_void_p
        try:
            if function("params_layout", ctypes.c_char_p)().decode() != layout_of(params):
                raise RuntimeError(f"{self.path} was made from another version of {room}/launch.h; make it anew")
            if self.name == "cpu":
                operator = _Operator(function("cpu", ctypes.c_int, pointer, ctypes.c_int), None)
            else:
                operator = _Operator(
                    function("launch", ctypes.c_int, pointer, pointer, ctypes.c_size_t, pointer),
                    function("workspace_size", ctypes.c_size_t, pointer),
                )
        except AttributeError as error:
            raise RuntimeError(f"{self.path} holds no {room}; make it anew") from error
        self._operators[room, params] = operator
        return operator


def layout_of(params: type[ctypes.Structure]) -> str:
    """Name, offset and size of every member, as the library states them (common/exports.h)."""
    members = ((field[0], getattr(params, field[0])) for field in params._fields_)
    return "".join(f"{name}:{member.offset}:{member.size} " for name, member in members)


@cache
def _load_or_warn(name: str, architecture: str) -> Library | None:
    try:
        return load(name, architecture)
    except BuildError as error:
        warnings.warn(
            f"no compiled operators for {name}, the slower PyTorch reference serves instead: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def load(name: str, architecture: str = "") -> Library:
    """Library `name` (cpu, cuda, emulated, emulated_sm_75), compiled first if need be. BuildError when that fails.

    architecture: of the GPU, as "90"; for cuda alone. InputError: an unknown UPSNET_CPU_LEVEL.
    """
    if architecture and int(architecture) < OLDEST_GPU:
        raise BuildError(
            f"the GPU is too old: it is sm_{architecture}, the kernels need sm_{OLDEST_GPU} (a T4) or newer"
        )
    with _lock:
        return Library(name, find_library(name, architecture))
