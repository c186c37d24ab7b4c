"""ONNX Runtime: the exported file as it is, and its compiled operators."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import onnxruntime

from export.backends.backend import Job
from export.outcome import Outcome
from upsnet.contract import CUDA_LIBRARY, LIBRARY
from upsnet.engines import manifest as engines
from upsnet.files import writing
from upsnet.runtimes.onnx_runtime import CUDA, open_with_kernels


class OnnxRuntime:
    """The file as it is: ONNX Runtime optimises it for the processor whenever it loads it, and a file that it optimised
    ahead of time loads hardly sooner (docs/onnxruntime.md)."""

    name: engines.Backend = "onnxruntime"
    options: frozenset[str] = frozenset()

    def available(self) -> str | None:
        return None  # the workshop has it

    def source(self, job: Job) -> Path | str:
        return job.model

    def build(self, job: Job, source: Path) -> Outcome:
        """It is opened here once for each device, which compiles the kernels; those that it ran with are copied."""
        start = time.monotonic()
        session, kernels = open_with_kernels(source, device="auto")
        opened = [kernels]
        if session.get_providers()[0] == CUDA:
            opened.append(open_with_kernels(source)[1])
        del session
        found = {each.library.name: each.library for each in opened if each.library is not None}
        copies = [(found[name], name) for name in (LIBRARY, CUDA_LIBRARY) if name in found]
        for file, name in (*copies, (source, engines.ENGINES[self.name])):
            with writing(job.folder / name):
                shutil.copyfile(file, job.folder / name)
        size = (job.folder / engines.ENGINES[self.name]).stat().st_size
        seconds = round(time.monotonic() - start, 2)
        version = onnxruntime.__version__
        return Outcome(status="built", bytes=size, seconds=seconds, version=version, kernels=str(kernels))
