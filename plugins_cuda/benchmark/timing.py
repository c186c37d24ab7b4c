"""Seconds of calls that take turns (A B A B ...), so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
Times = dict[str, list[float]]
COPIES = 20  # of an operator in one CUDA graph: a replay's own cost vanishes in the mean
FLUSH_BYTES = 256 << 20  # written between cold calls: several times a GPU's last cache


def time_cpu(calls: dict[str, Call], rounds: int, least: float = 2e-3, budget: float = 30.0) -> Times:
    """Seconds a call, `rounds` times each, or fewer (three at least) once they took `budget` seconds. Calls shorter
    than `least` are timed several at once."""
    repeats = {name: math.ceil(least / max(_warm_seconds(call), 1e-7)) or 1 for name, call in calls.items()}
    times: Times = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def _warm_seconds(call: Call) -> float:
    """Of a second call; of the first where that is too long for its start to matter."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if seconds > 0.5:
            break
    return seconds


def capture(call: Call, copies: int = 1) -> torch.cuda.CUDAGraph:
    """A CUDA graph of the call. RuntimeError when it synchronises, allocates behind PyTorch's back, or copies to the
    host: capture allows none of these."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(copies):
            call()
    return graph


def time_cuda(graphed: dict[str, Call], eager: dict[str, Call], rounds: int) -> tuple[Times, Times]:
    """Seconds a call on the GPU by its own clock (CUDA events): cold, after a write that empties the caches, and warm,
    back to back. `graphed` calls are replayed from CUDA graphs; `eager` ones run as they are, their launches included.
    """
    flush = flushing()
    single: dict[str, Call] = {name: capture(call).replay for name, call in graphed.items()} | eager
    several: dict[str, Call] = {name: capture(call, COPIES).replay for name, call in graphed.items()}
    cold: Times = {name: [] for name in single}
    warm: Times = {name: [] for name in single}
    for call in single.values():
        call()
    for _ in range(rounds):
        for name, call in single.items():
            flush()
            cold[name].append(event_seconds(call))
        for name, call in single.items():
            if name in several:
                warm[name].append(event_seconds(several[name]) / COPIES)
            else:
                call()
                warm[name].append(event_seconds(call))
    return cold, warm


def flushing() -> Call:
    """A write that leaves a GPU's caches with nothing of what was in them."""
    written = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    return lambda: written.fill_(1)


def event_seconds(call: Call) -> float:
    """By the GPU's clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
