"""torch-tensorrt: the checkpoint's PyTorch model, compiled (export/torch_tensorrt.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from export.backends.backend import Job
from export.outcome import Outcome
from upsnet.driver import gpu_problem
from upsnet.engines import manifest as engines


class TorchTensorRT:
    """It starts from the checkpoint, not from the ONNX file."""

    name: engines.Backend = "torch-tensorrt"
    options: frozenset[str] = frozenset({"profiles"})

    def available(self) -> str | None:
        if importlib.util.find_spec("torch_tensorrt") is None:
            return "the package torch-tensorrt is not installed (pip install '.[gpu]')"
        if problem := gpu_problem():
            return f"torch-tensorrt is installed, but {problem}"
        return None

    def source(self, job: Job) -> Path | str:
        if job.checkpoint is None:
            return "it compiles a checkpoint, and there is none beside the model; give --checkpoint"
        return job.checkpoint

    def build(self, job: Job, source: Path) -> Outcome:
        from export.torch_tensorrt import build

        return build(source, job.folder / engines.ENGINES[self.name], job.manifest, job.options.profiles)
