"""A model in a process of its own: its time and its memory are those of nothing else."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

STATUS = Path("/proc/self/status")


class Loaded(NamedTuple):
    """What the process says when the model is there."""

    manifest: Manifest
    kernels: str  # that it runs with, in words
    milliseconds: float  # of loading, without Python's own imports


class Answer(NamedTuple):
    """One call of the network."""

    raw: RawPrediction
    milliseconds: float
    cpu_s: float  # of all threads, user and system
    peak_mib: float  # the most that the process has held so far


class KernelWorker:
    """A predictor in a process of its own, with or without the library of operators."""

    device_name: str = "cpu"

    def __init__(self, model: str, file: Path, kernels: str, threads: int) -> None:
        """model: its name for people. kernels: "auto" or "off". InputError where the file cannot be loaded."""
        self.model, self.name = model, f"{model}, kernels {kernels}"
        self.first_ms = 0.0  # of its first call
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, file, kernels, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid
        self.loaded: Loaded = self._receive()
        self.manifest, self.kernels = self.loaded.manifest, self.loaded.kernels

    def ask(self, batch: NetworkBatch) -> Answer:
        with suppress(BrokenPipeError):  # it has ended, which the answer will tell
            self._connection.send(batch)
        answer: Answer = self._receive()
        self.first_ms = self.first_ms or answer.milliseconds
        return answer

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        return self.ask(batch).raw

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:  # what is due
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise InputError(f"{self.name}: its process ended with exit status {self._process.exitcode}") from None
        if isinstance(answer, InputError):
            raise answer
        return answer


def work(connection: Connection, model: Path, kernels: str, threads: int) -> None:
    """The process: a `Loaded` or the InputError, then an `Answer` for each batch, until nobody asks any more."""
    from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

    try:
        start = time.perf_counter()
        predictor = OnnxRuntimePredictor(model, threads, kernels=kernels)
        connection.send(Loaded(predictor.manifest, predictor.kernels, 1e3 * (time.perf_counter() - start)))
    except InputError as error:
        connection.send(error)
        return
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        start, cpu = time.perf_counter(), time.process_time()
        raw = predictor.predict(batch)
        milliseconds, cpu_s = 1e3 * (time.perf_counter() - start), time.process_time() - cpu
        connection.send(Answer(raw, milliseconds, cpu_s, peak_mib()))


def peak_mib() -> float:
    """The most memory that this process has held. On Linux, getrusage's figure is also that of the process's parent."""
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
