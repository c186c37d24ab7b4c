"""A CUDA runtime without a GPU, with the names of `cuda.bindings.runtime`: what is asynchronous there happens here when
a stream is waited for, memory that was freed or is too small is an illegal address, and what cannot be captured is not.

test_fakes.py holds every name and parameter against the real package.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

FIRST_ADDRESS = 0x1000_0000_0000  # no host memory lies there
ALIGNMENT = 256
FRESH = 0xCD  # every byte of memory that nobody has written


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(IntEnum):
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0
ENUMS = (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr)
OK = cudaError_t.cudaSuccess
E = cudaError_t


class Fault(Exception):
    """A call, or work on a stream, that CUDA refuses."""

    def __init__(self, code: cudaError_t) -> None:
        super().__init__(code.name)
        self.code = code


class Handle:
    """A stream, a graph, an event."""

    _numbers = itertools.count(0x5000)

    def __init__(self, device: int) -> None:
        self.number, self.device = next(self._numbers), device

    def __int__(self) -> int:
        return self.number


class Work:
    """What is put on a stream. context: whose it is, and is told when it is put there and when it is done."""

    def __init__(self, run: Callable[[], None], context: Any = None) -> None:
        self.run, self.context = run, context


class Stream(Handle):
    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.queue: deque[Work] = deque()
        self.lock = threading.RLock()
        self.graph: Graph | None = None  # that is being captured
        self.mode, self.thread, self.invalid = cudaStreamCaptureMode.cudaStreamCaptureModeGlobal, 0, False


class Graph(Handle):
    def __init__(self, device: int, work: list[Work] | None = None) -> None:
        super().__init__(device)
        self.work: list[Work] = work if work is not None else []


class GraphExec(Graph):
    pass


class Event(Handle):
    seconds: float | None = None


class Memory:
    """An allocation of a device (`data`), or of pinned memory of the host."""

    def __init__(self, start: int, size: int, data: Any, what: str, device: int) -> None:
        self.start, self.size, self.data, self.what, self.device = start, size, data, what, device


class FakeCuda:
    """gpus: how many; 0: no driver. memory: bytes of each.

    Tests look at `misuses` (what CUDA or TensorRT would answer with undefined behaviour), at `calls`, and at `held()`,
    and make calls fail with `fail`.
    """

    def __init__(self, gpus: int = 1, memory: int = 2**33, capability: tuple[int, int] = (9, 0)) -> None:
        self.gpus, self.memory, self.capability = gpus, memory, capability
        self.name = "Fake GPU"
        self.misuses: list[str] = []
        self.calls: list[str] = []
        self.fail: dict[str, tuple[int, cudaError_t]] = {}  # name -> which call from now, 0 the next; and its error
        self.sticky = OK
        self.allocations: dict[int, Memory] = {}
        self.handles: dict[int, Handle] = {}
        self.contexts: set[int] = set()  # GPUs that this process has CUDA's usual context on
        self._next = FIRST_ADDRESS
        self._lock = threading.RLock()
        self._thread = threading.local()

    # What tests, and the fake TensorRT, use

    def held(self) -> list[str]:
        """All that is not freed."""
        with self._lock:
            memory = [f"{each.what} of {each.size} bytes" for each in self.allocations.values()]
            return sorted(memory + [type(each).__name__ for each in self.handles.values()])

    @property
    def device(self) -> int:
        """Of the calling thread."""
        return getattr(self._thread, "device", 0)

    def allocate(self, size: int, what: str, device: int | None = None) -> int:
        with self._lock:
            device = self.device if device is None else device
            used = sum(each.size for each in self.allocations.values() if each.device == device and each.what != "host")
            if used + size > self.memory:
                raise Fault(E.cudaErrorMemoryAllocation)
            start = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + 16 * ALIGNMENT  # a gap: what runs over is seen
            self.allocations[start] = Memory(start, size, np.full(size, FRESH, np.uint8), what, device)
            return start

    def release(self, start: int) -> None:
        with self._lock:
            if self.allocations.pop(start, None) is None:
                raise Fault(E.cudaErrorInvalidValue)

    def view(self, address: int, size: int) -> np.ndarray:
        """uint8: that many bytes of a device's memory."""
        with self._lock:
            for each in self.allocations.values():
                if each.what != "host" and each.start <= address and address + size <= each.start + each.size:
                    return each.data[address - each.start : address - each.start + size]
        raise Fault(E.cudaErrorIllegalAddress)

    def pinned(self, address: int, size: int) -> bool:
        with self._lock:
            hosts = [each for each in self.allocations.values() if each.what == "host"]
            return any(each.start <= address and address + size <= each.start + each.size for each in hosts)

    def stream(self, handle: Any) -> Stream:
        found = self.handles.get(int(handle))
        if not isinstance(found, Stream):
            raise Fault(E.cudaErrorInvalidResourceHandle)
        return found

    def enqueue(self, handle: Any, work: Work) -> None:
        stream = self.stream(handle)
        with stream.lock:
            if stream.graph is not None:
                stream.graph.work.append(work)
                return
            if work.context is not None:
                work.context._begin(stream)
            stream.queue.append(work)

    def wait(self, stream: Stream) -> None:
        with stream.lock:
            while stream.queue:
                work = stream.queue.popleft()
                try:
                    work.run()
                except Fault as fault:
                    self.sticky = fault.code
                    stream.queue.clear()
                    raise
                finally:
                    if work.context is not None:
                        work.context._end()

    def unsafe(self) -> None:
        """A call that no capture bears: those it meets are ended, and it fails."""
        with self._lock:
            met = [each for each in self.handles.values() if isinstance(each, Stream) and self._meets(each)]
            for stream in met:
                stream.invalid = True
            if met:
                raise Fault(E.cudaErrorStreamCaptureUnsupported)

    def _meets(self, stream: Stream) -> bool:
        if stream.graph is None or stream.mode == cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed:
            return False
        anyone = stream.mode == cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
        return anyone or stream.thread == threading.get_ident()

    # The calls. Each `_name` below is `cudaName`; what it raises as a Fault is its status.

    def _Malloc(self, size: int) -> int:
        self.unsafe()
        return self.allocate(size, "device memory")

    def _Free(self, devPtr: int) -> None:
        self.unsafe()
        for stream in self._streams():  # it waits for the device
            self.wait(stream)
        if int(devPtr):
            self.release(int(devPtr))

    def _HostAlloc(self, size: int, flags: int) -> int:
        self.unsafe()
        buffer = (ctypes.c_uint8 * max(1, size))()
        start = ctypes.addressof(buffer)
        with self._lock:
            self.allocations[start] = Memory(start, size, buffer, "host", self.device)
        return start

    def _MallocHost(self, size: int) -> int:
        return self._HostAlloc(size, 0)

    def _FreeHost(self, ptr: int) -> None:
        self._Free(ptr)

    def _MemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
        found = self.stream(stream)
        to_device = kind in (cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToDevice)
        from_device = kind in (cudaMemcpyKind.cudaMemcpyDeviceToHost, cudaMemcpyKind.cudaMemcpyDeviceToDevice)
        try:  # an address that is none is seen at once
            for device, address in ((to_device, dst), (from_device, src)):
                if device:
                    self.view(int(address), count)
        except Fault:
            raise Fault(E.cudaErrorInvalidValue) from None
        pageable = [each for device, each in ((to_device, dst), (from_device, src)) if not device]
        pageable = [each for each in pageable if not self.pinned(int(each), count)]
        if pageable and found.graph is not None:
            found.invalid = True
            raise Fault(E.cudaErrorStreamCaptureUnsupported)
        early = ctypes.string_at(int(src), count) if pageable and not from_device else None  # it is staged at once

        def copy() -> None:
            if early is not None:
                content = early
            elif from_device:
                content = self.view(int(src), count).tobytes()
            else:
                content = ctypes.string_at(int(src), count)
            if to_device:
                self.view(int(dst), count)[:] = np.frombuffer(content, np.uint8)
            else:
                ctypes.memmove(int(dst), content, count)

        self.enqueue(stream, Work(copy))

    def _MemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> None:
        self.enqueue(stream, Work(lambda: self.view(int(devPtr), count).fill(value)))

    def _StreamCreateWithFlags(self, flags: int) -> Stream:
        return self._keep(Stream(self.device))

    def _StreamDestroy(self, stream: Any) -> None:
        self.wait(self.stream(stream))
        del self.handles[int(stream)]

    def _StreamSynchronize(self, stream: Any) -> None:
        found = self.stream(stream)
        if found.graph is not None:
            found.invalid = True
            raise Fault(E.cudaErrorStreamCaptureUnsupported)
        self.wait(found)

    def _DeviceSynchronize(self) -> None:
        self.unsafe()
        for stream in self._streams():
            self.wait(stream)

    def _StreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> None:
        found = self.stream(stream)
        if found.graph is not None:
            raise Fault(E.cudaErrorInvalidValue)
        found.graph, found.mode, found.thread, found.invalid = Graph(found.device), mode, threading.get_ident(), False

    def _StreamEndCapture(self, stream: Any) -> Graph:
        found = self.stream(stream)
        graph, found.graph = found.graph, None
        if graph is None:
            raise Fault(E.cudaErrorInvalidValue)
        if found.invalid:
            raise Fault(E.cudaErrorStreamCaptureInvalidated)
        return self._keep(graph)

    def _GraphInstantiate(self, graph: Any, flags: int) -> GraphExec:
        found = self.handles[int(graph)]
        assert isinstance(found, Graph)
        return self._keep(GraphExec(found.device, list(found.work)))

    def _GraphLaunch(self, graphExec: Any, stream: Any) -> None:
        found = self.handles.get(int(graphExec))
        if not isinstance(found, GraphExec) or self.device != self.stream(stream).device:
            raise Fault(E.cudaErrorInvalidResourceHandle)
        for work in found.work:
            self.enqueue(stream, work)

    def _GraphExecDestroy(self, graphExec: Any) -> None:
        self._drop(graphExec)

    def _GraphDestroy(self, graph: Any) -> None:
        self._drop(graph)

    def _EventCreate(self) -> Event:
        return self._keep(Event(self.device))

    def _EventRecord(self, event: Any, stream: Any) -> None:
        found = self.handles[int(event)]
        assert isinstance(found, Event)
        self.enqueue(stream, Work(lambda: setattr(found, "seconds", time.perf_counter())))

    def _EventSynchronize(self, event: Any) -> None:
        for stream in self._streams():
            self.wait(stream)

    def _EventElapsedTime(self, start: Any, end: Any) -> float:
        first, last = (self.handles[int(each)] for each in (start, end))
        assert isinstance(first, Event) and isinstance(last, Event)
        if first.seconds is None or last.seconds is None:
            raise Fault(E.cudaErrorInvalidResourceHandle)
        return 1e3 * (last.seconds - first.seconds)

    def _EventDestroy(self, event: Any) -> None:
        self._drop(event)

    def _SetDevice(self, device: int) -> None:
        if not 0 <= device < self.gpus:
            raise Fault(E.cudaErrorInvalidDevice)
        self._thread.device = device
        self.contexts.add(device)  # since CUDA 12

    def _GetDevice(self) -> int:
        return self.device

    def _GetDeviceCount(self) -> int:
        return self.gpus

    def _GetDeviceProperties(self, device: int) -> Any:
        major, minor = self.capability
        return SimpleNamespace(
            name=self.name.encode(), major=major, minor=minor, totalGlobalMem=self.memory, multiProcessorCount=132
        )

    def _DeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> int:
        return {16: 132, 75: self.capability[0], 76: self.capability[1]}[int(attr)]

    def _MemGetInfo(self) -> tuple[int, int]:
        used = sum(each.size for each in self.allocations.values() if each.what != "host")
        return self.memory - used, self.memory

    def _RuntimeGetVersion(self) -> int:
        return 13000

    def _DriverGetVersion(self) -> int:
        return 13000 if self.gpus else 0

    def _streams(self) -> list[Stream]:
        return [each for each in list(self.handles.values()) if isinstance(each, Stream) and each.graph is None]

    def _keep(self, handle: Any) -> Any:
        with self._lock:
            self.handles[int(handle)] = handle
        return handle

    def _drop(self, handle: Any) -> None:
        with self._lock:
            if self.handles.pop(int(handle), None) is None:
                raise Fault(E.cudaErrorInvalidResourceHandle)

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """The calling thread's device, for a while."""
        before = self.device
        self._thread.device = device
        try:
            yield
        finally:
            self._thread.device = before

    def cuDevicePrimaryCtxGetState(self, dev: int) -> tuple[int, int, int]:
        """The driver's: status, flags, whether it is active."""
        return 0, 0, int(dev in self.contexts)


FUNCTIONS = {f"cuda{name[1:]}": name for name in vars(FakeCuda) if name[0] == "_" and name[1:2].isupper()}
DRIVER_FUNCTIONS = ("cuDevicePrimaryCtxGetState",)
ANY_TIME = ("cudaGetDeviceCount", "cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetDevice")


def make_module(cuda: FakeCuda) -> ModuleType:
    """What stands for the module `cuda.bindings.runtime`."""
    module: Any = ModuleType("cuda.bindings.runtime")
    module.fake = cuda
    for each in ENUMS:
        setattr(module, each.__name__, each)
    module.cudaStreamNonBlocking, module.cudaHostAllocDefault = cudaStreamNonBlocking, cudaHostAllocDefault
    module.cudaGetErrorName = lambda error: (OK, cudaError_t(error).name.encode())
    module.cudaGetErrorString = lambda error: (OK, f"what {cudaError_t(error).name} means".encode())
    for name, own in FUNCTIONS.items():
        setattr(module, name, _call(cuda, name, getattr(cuda, own)))
    return module


def make_driver(cuda: FakeCuda) -> ModuleType:
    """What stands for the module `cuda.bindings.driver`."""
    module: Any = ModuleType("cuda.bindings.driver")
    for name in DRIVER_FUNCTIONS:
        setattr(module, name, getattr(cuda, name))
    return module


def _call(cuda: FakeCuda, name: str, function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """The status first, then what it returns; None in its place where it fails."""
    count = 0 if function.__annotations__.get("return") in ("None", None) else 1
    count = 2 if name == "cudaMemGetInfo" else count

    def call(*given: Any, **named: Any) -> tuple[Any, ...]:
        cuda.calls.append(name)
        try:
            if not cuda.gpus and name != "cudaRuntimeGetVersion":
                raise Fault(E.cudaErrorInsufficientDriver)
            if cuda.sticky and name not in ANY_TIME:
                raise Fault(cuda.sticky)
            if name in cuda.fail:
                left, error = cuda.fail.pop(name)
                if left == 0:
                    raise Fault(error)
                cuda.fail[name] = (left - 1, error)
            result = function(*given, **named)
        except Fault as fault:
            return fault.code, *(None,) * count
        if count == 2:
            return OK, *result
        return (OK, result) if count else (OK,)

    call.__name__ = name
    return call
