"""CUDA's runtime by cuda-python, without PyTorch: memory, a stream, graphs. Every call's status is looked at."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np

from upsnet import DISTRIBUTION
from upsnet.device import Device
from upsnet.driver import gpu_problem
from upsnet.errors import InputError, first_line

MODULE, DRIVER_MODULE = "cuda.bindings.runtime", "cuda.bindings.driver"
CURE = f"pip install '{DISTRIBUTION}[gpu]'"


class CudaError(InputError):
    """A call of CUDA failed. `name`: of its status, as cudaErrorMemoryAllocation."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def open_library(module: str) -> ModuleType | Any:  # Any: it is compiled
    """A module of cuda-bindings. InputError, with the cure, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"the package cuda-bindings is not installed ({first_line(error)}): {CURE}") from None


def problem_with_gpu() -> str | None:
    """Why no GPU computes here; None where one does."""
    try:
        count = Cuda(0).count()
    except InputError as error:
        return str(error)
    return None if count else "this machine has no NVIDIA GPU"


class Cuda:
    """One GPU. Whatever is done with it is done inside `with cuda.current():`, in any thread."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.library, self.driver = open_library(MODULE), open_library(DRIVER_MODULE)

    @classmethod
    def open(cls, device: Device) -> Cuda:
        """InputError for the CPU, without a GPU, and for one that there is not."""
        if device.kind == "cpu":
            raise InputError("device cpu: TensorRT computes on a GPU alone; the runtime onnxruntime takes the CPU")
        opened = cls(device.number)
        if device.number >= (count := opened.count()):
            there = f"there is 1 NVIDIA GPU, {Device('cuda')}" if count == 1 else f"there are {count} NVIDIA GPUs"
            raise InputError(f"device {device}: {there}")
        return opened

    def call(self, name: str, *given: Any) -> Any:
        """What cudaNAME returns, without its status. CudaError where that is an error."""
        status, *result = getattr(self.library, f"cuda{name}")(*given)
        if int(status) == 0:
            return (result[0] if len(result) == 1 else tuple(result)) if result else None
        word = getattr(status, "name", str(int(status)))
        _, text = self.library.cudaGetErrorString(status)
        described = text.decode(errors="replace") if isinstance(text, bytes) else word
        cure = "; take a smaller batch or engine, or free the GPU" if word == "cudaErrorMemoryAllocation" else ""
        raise CudaError(f"CUDA's {name} failed on cuda:{self.number}: {described} ({word}){cure}", word)

    def count(self) -> int:
        """How many GPUs there are. CudaError where that is none, with what the driver says."""
        try:
            return int(self.call("GetDeviceCount"))
        except CudaError as error:
            if (problem := gpu_problem()) is None:
                raise
            raise CudaError(f"{problem} ({error.name})", error.name) from None

    @property
    def name(self) -> str:
        found = self.call("GetDeviceProperties", self.number).name
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)

    @contextmanager
    def current(self) -> Iterator[None]:
        """This GPU is the calling thread's for a while: what else the thread does with CUDA does not see it.

        It stays the thread's where nothing in this process uses the GPU before it: CUDA would make a context there,
        which takes hundreds of megabytes.
        """
        before = int(self.call("GetDevice"))
        self.call("SetDevice", self.number)
        try:
            yield
        finally:
            if before != self.number and self._is_used(before):
                with suppress(CudaError):
                    self.call("SetDevice", before)

    def _is_used(self, number: int) -> bool:
        """Whether this process has CUDA's usual context on a GPU."""
        status, _, active = self.driver.cuDevicePrimaryCtxGetState(number)
        return int(status) == 0 and bool(active)


class Buffer:
    """Memory that grows. host: pinned memory of this machine, else the GPU's."""

    def __init__(self, cuda: Cuda, host: bool = False) -> None:
        self.cuda, self.host, self.address, self.size = cuda, host, 0, 0

    def reserve(self, size: int, spare: int = 0) -> None:
        """At least so many bytes, elsewhere where it has to grow; what was in it is gone then.

        spare: how many more it takes than it had, at least, where they can be had.
        """
        if size <= self.size:
            return
        wanted = max(size, self.size + spare)
        self.free()
        try:
            self._allocate(wanted)
        except CudaError as error:
            if wanted == size or error.name != "cudaErrorMemoryAllocation":
                raise
            self._allocate(size)

    def _allocate(self, size: int) -> None:
        if self.host:
            self.address = int(self.cuda.call("HostAlloc", size, int(self.cuda.library.cudaHostAllocDefault)))
        else:
            self.address = int(self.cuda.call("Malloc", size))
        self.size = size

    def array(self, offset: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
        """A view of a part of pinned memory."""
        count = int(np.prod(shape))
        content = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(self.address + offset)
        return np.ctypeslib.as_array(content).view(kind).reshape(shape)

    def free(self) -> None:
        address, self.address, self.size = self.address, 0, 0
        if address:
            self.cuda.call("FreeHost" if self.host else "Free", address)


class Stream:
    """Work in order. It blocks no other stream."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.handle = cuda.call("StreamCreateWithFlags", int(cuda.library.cudaStreamNonBlocking))

    def __int__(self) -> int:
        return int(self.handle)

    def to_device(self, destination: int, source: int, size: int) -> None:
        kind = self.cuda.library.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cuda.call("MemcpyAsync", destination, source, size, kind, self.handle)

    def to_host(self, destination: int, source: int, size: int) -> None:
        kind = self.cuda.library.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cuda.call("MemcpyAsync", destination, source, size, kind, self.handle)

    def wait(self) -> None:
        self.cuda.call("StreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts on this stream, as a graph. Other threads may go on meanwhile."""
        self.cuda.call(
            "StreamBeginCapture", self.handle, self.cuda.library.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with suppress(CudaError):  # what was captured so far, if anything
                self.cuda.call("GraphDestroy", self.cuda.call("StreamEndCapture", self.handle))
            raise
        graph = self.cuda.call("StreamEndCapture", self.handle)
        try:
            return Graph(self.cuda, self.cuda.call("GraphInstantiate", graph, 0))
        finally:
            self.cuda.call("GraphDestroy", graph)

    def destroy(self) -> None:
        self.cuda.call("StreamDestroy", self.handle)


class Graph:
    """Work that was captured, which is launched in one call."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.cuda, self.handle = cuda, handle

    def launch(self, stream: Stream) -> None:
        self.cuda.call("GraphLaunch", self.handle, stream.handle)

    def destroy(self) -> None:
        self.cuda.call("GraphExecDestroy", self.handle)
