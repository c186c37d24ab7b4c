"""A model in ONNX Runtime, with its profile on and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from tqdm import tqdm

from eval.profiling.graph import Graph
from eval.profiling.trace import Run, read_trace
from upsnet.contract import INPUTS
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.onnx_runtime import CPU, session_options

WARM_UP = 2  # runs that are not counted
LIBRARY, BODIES = "library", "bodies"  # what runs the custom operators


class Recording(NamedTuple):
    """One model with one choice of kernels."""

    kernels: str  # LIBRARY or BODIES, else the runtime
    ms: float  # of a call without the profile, median
    runs: list[Run]  # with it
    graph: Graph | None  # that ran; None where every execution says its module


def record(model: Path, batch: NetworkBatch, threads: int, library: Path | None, runs: int) -> Recording:
    """Times `runs` calls without the profile, then as many with it. library: of the custom operators; None: bodies."""
    kernels = BODIES if library is None else LIBRARY
    feed = dict(zip(INPUTS, batch, strict=True))
    session = _start(model, session_options(threads, library, model))
    times = _call(session, feed, runs, f"{kernels}, timing")
    del session
    with tempfile.TemporaryDirectory() as folder:
        ran = Path(folder) / "ran.onnx"
        options = session_options(threads, library, model)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(ran)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "ran.weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = _start(model, options)
        _call(session, feed, runs, f"{kernels}, profiling")
        profiled = read_trace(Path(session.end_profiling()))[WARM_UP:]
        del session
        graphs = [onnx.load(str(path), load_external_data=False) for path in (ran, model)]
    return Recording(kernels, statistics.median(times), profiled, Graph(*graphs))


def trace_of(model: Path, options: ort.SessionOptions, batch: NetworkBatch) -> Run:
    """One call of a model, with its profile on."""
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _start(model, options)
        session.run(None, dict(zip(INPUTS, batch, strict=True)))
        return read_trace(Path(session.end_profiling()))[-1]


def _start(model: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(model), options, providers=[CPU])


def _call(session: ort.InferenceSession, feed: dict[str, np.ndarray], runs: int, what: str) -> list[float]:
    """Milliseconds of every run that counts."""
    times = []
    for _ in tqdm(range(WARM_UP + runs), desc=what, unit="run", disable=None):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - start))
    return times[WARM_UP:]
