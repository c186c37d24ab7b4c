"""What the machine can do at most, measured in the same run: the floor under every figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True)
class Work:
    """The least that an operator must do: bytes read and written once each, operations (a multiply-add is two).

    matrix_operations: those of them that a matrix product can do.
    """

    bytes: float
    operations: float
    matrix_operations: float = 0.0


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second of a large copy (read and written), operations a second of float32 and of matrix products."""

    bandwidth: float
    operations: float
    matrix_operations: dict[str, float]

    def floor(self, work: Work, dtype: str) -> float:
        """Seconds: no implementation on this machine can be faster, however it overlaps its parts."""
        matrix = self.matrix_operations.get(dtype, self.operations)
        return max(work.bytes / self.bandwidth, work.operations / self.operations, work.matrix_operations / matrix)


def measure_ceilings(device: torch.device, quick: bool = False) -> Ceilings:
    """Best of several large copies and square matrix products."""
    on_cuda = device.type == "cuda"
    elements = (1 << 20) if quick else (1 << 28 if on_cuda else 1 << 26)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    bandwidth = 8 * elements / _best(lambda: target.copy_(source), device)
    side = 256 if quick else (8192 if on_cuda else 2048)
    rates = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if on_cuda else (torch.float32,):
        factor = torch.randn(side, side, device=device).to(dtype)
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / _best(lambda factor=factor: factor @ factor, device)  # type: ignore[misc]
    return Ceilings(bandwidth, rates["float32"], rates)


def _best(call: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Seconds; the first two calls do not count."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[2:])
