"""What the two models of triton_repo/ share inside Triton's Python backend, which calls its own process a stub.

`triton_python_backend_utils` exists there alone, and is handed in as `pb_utils`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def check_tensors(pb_utils: Any) -> None:
    """RuntimeError where the backend and numpy do not fit: its tensors would come back empty, without an error.

    So it is with Triton 24.10 and numpy 2; newer ones of both get on.
    """
    sent = np.arange(1, 4, dtype=np.float32)
    got = pb_utils.Tensor.from_dlpack("probe", pb_utils.Tensor("probe", sent)).as_numpy()
    if not np.array_equal(sent, got):
        raise RuntimeError(f"this Triton's Python backend cannot read the arrays of numpy {np.__version__}; take 1.26")


class Counters:
    """A model's milliseconds in each stage, and how many batches of each size it ran, beside Triton's own metrics."""

    def __init__(self, pb_utils: Any, model: str) -> None:
        family = pb_utils.MetricFamily
        self._model = model
        self._milliseconds = family(
            "upsnet_stage_milliseconds_total", "Milliseconds spent in a stage of a model", family.COUNTER
        )
        self._batches = family("upsnet_executed_batches_total", "Batches of a size that a model ran", family.COUNTER)
        self._metrics: dict[tuple[str, str], Any] = {}

    @contextmanager
    def stage(self, name: str, *seconds: dict[str, float]) -> Iterator[None]:
        """Counts the time inside, and puts it under its name into each of `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self._metric(self._milliseconds, "stage", name).increment(1000 * passed)
            for each in seconds:
                each[name] = passed

    def batch(self, size: int) -> None:
        self._metric(self._batches, "size", str(size)).increment(1)

    def _metric(self, family: Any, label: str, value: str) -> Any:
        if (label, value) not in self._metrics:
            self._metrics[label, value] = family.Metric({"model": self._model, label: value})
        return self._metrics[label, value]
