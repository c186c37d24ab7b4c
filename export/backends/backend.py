"""The interface of what builds an engine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from export.options import EngineOptions
from export.outcome import Outcome
from upsnet.engines import manifest as engines
from upsnet.manifest import Manifest


class Job(NamedTuple):
    """What is to be built."""

    model: Path  # the ONNX file that was named
    manifest: Manifest  # of it
    folder: Path  # the engine, and all that it needs beside it, is written here
    plugins: Path | None = None  # the library of TensorRT's plugins
    checkpoint: Path | None = None  # that the model was exported from, where it is known
    options: EngineOptions = EngineOptions()


class Backend(Protocol):
    """One package that builds engines."""

    @property
    def name(self) -> engines.Backend: ...

    @property
    def options(self) -> frozenset[str]:
        """Those of `EngineOptions` that it has."""

    def available(self) -> str | None:
        """Why it cannot build on this machine; None where it can."""

    def source(self, job: Job) -> Path | str:
        """The file that it builds from; or, in words, why there is none."""

    def build(self, job: Job, source: Path) -> Outcome:
        """Builds `ENGINES[name]` into the job's folder, and puts its libraries beside it."""
