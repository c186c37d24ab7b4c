"""CUDA as a program of PyTorch sees it, on a machine without a GPU: tensors live on the CPU, and operators run there.

For what has never met a GPU: whether its events, streams, graphs and memory statistics are asked for in the right way,
and whether what is captured in a graph may be.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from plugins_cuda import library
from plugins_cuda.benchmark import timing

WAITS = ("aten._local_scalar_dense.", "aten.nonzero.", "aten.masked_select.", "aten.equal.")  # for the GPU


class OnTheCpu(TorchFunctionMode):
    """Whatever names a CUDA device gets the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:  # the program's own words stay
            return func(*args, **(kwargs or {}))
        return func(*tree_map(self.device, args), **tree_map(self.device, kwargs or {}))

    @staticmethod
    def device(value: Any) -> Any:
        named = isinstance(value, torch.device | str) and str(value).startswith("cuda")
        return torch.device("cpu") if named else value


class Stream:
    """Streams wait for each other; none of it takes time here."""

    cuda_stream = 0

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class Event:
    """A moment, which must be recorded before it is read, and timed to be subtracted."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.moment = enable_timing, 0.0

    def record(self) -> None:
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        assert self.moment, "waiting for an event that nobody recorded"

    def elapsed_time(self, end: Event) -> float:
        assert self.timed and end.timed and self.moment and end.moment
        return 1e3 * (end.moment - self.moment)


class Recorder(TorchDispatchMode):
    """Keeps the operators that run inside it. RuntimeError for one that waits for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(WAITS):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Graph:
    """Runs what was recorded again, on the same tensors and into the same tensors."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def replay(self) -> None:
        assert self.recorder.calls, "an empty graph"
        for func, args, kwargs, result in self.recorder.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ "cuda" is the CPU."""
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "synchronize": lambda device=None: None,
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: graph.recorder,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 3000,
        "get_device_name": lambda device=None: "Fake GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=1 << 30),
        "_sleep": lambda cycles: None,
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name), f"torch.cuda has no {name}"
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1024)
    monkeypatch.setattr(timing, "COPIES", 2)
    real = library.compiled
    monkeypatch.setattr(library, "compiled", lambda device: real(OnTheCpu.device(device)))
    with OnTheCpu():
        yield
