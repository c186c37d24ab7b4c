"""What can be profiled: a model in one of the runtimes, and the roof of what it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from eval.plans import Plan, libraries_of, source_of
from eval.profiling import roofline
from eval.profiling.costs import CONVOLUTIONS, PRODUCTS
from eval.profiling.gpus import find_gpu, measure_gpu
from eval.profiling.in_pytorch import record_pytorch
from eval.profiling.in_tensorrt import executions_of, record_plan
from eval.profiling.measure import BODIES, LIBRARY, Recording, record
from eval.profiling.roofline import Roofline
from eval.profiling.summary import Work, work_of
from training.predictor import PyTorchPredictor
from upsnet.device import AUTO, parse_device
from upsnet.engines.check import check_engine
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import CHOICES, find_kernels, wanted_kernels
from upsnet.manifest import Manifest
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor

# What the least time on a GPU counts.
BY_FILE = "the nodes of the ONNX file, unfused and without filled channels; of the mask head the instances found here"
BY_RUN = "what {} ran here, its padding included (rows without an instance, filled channels)"
RUNTIMES = {LIBRARY: "ONNX Runtime", BODIES: "ONNX Runtime"}


class Wanted(NamedTuple):
    """What was asked for."""

    model: Path
    threads: int
    device: str | None
    runs: int
    kernels: list[str] | None
    gpu: Roofline | None  # that --gpu named


class Profiled(NamedTuple):
    """What came of it."""

    recordings: list[Recording]
    roofline: Roofline
    device: str  # "cpu", or what the GPU is called
    source: Path | None  # the ONNX file that ran, or that the plan was built from, if it is there

    def works(self, feed: NetworkBatch) -> tuple[list[Work], str]:
        """What the network has to compute, and what was counted for that: the nodes of its file as the exporter wrote
        them, else what the first recording ran."""
        nodes = executions_of(self.source, feed) if self.source else []
        if nodes and all(each.outputs for each in nodes if each.operator in (*CONVOLUTIONS, *PRODUCTS)):
            return [work_of(each, None) for each in nodes], BY_FILE
        first = self.recordings[0]
        counted = [work_of(each, first.graph) for each in first.runs[0].executions]
        return counted, BY_RUN.format(RUNTIMES.get(first.kernels, first.kernels))


class Subject(Protocol):
    """A model that was opened, and found to be one."""

    manifest: Manifest

    def profile(self, feed: NetworkBatch) -> Profiled:
        """Time with the profile on, and without."""
        ...


def open_subject(runtime: str, wanted: Wanted) -> Subject:
    """InputError for a runtime that tells no times, and what that runtime cannot open."""
    if runtime == "pytorch":
        return InPyTorch(wanted)
    if runtime == "onnxruntime":
        return InOnnxRuntime(wanted)
    if runtime in ("tensorrt", "tensorrt-rtx"):
        return InTensorRT(wanted)
    raise InputError(f"the runtime {runtime} tells no times of its own; give --runtime, or another model")


class InOnnxRuntime:
    """An .onnx file on the CPU, with the library of operators and from function bodies."""

    def __init__(self, wanted: Wanted) -> None:
        if wanted.device not in (None, "cpu"):
            raise InputError(f"--device {wanted.device}: ONNX Runtime is profiled on the CPU alone; leave it out")
        chosen = [find_kernels(wanted_kernels(word)) for word in dict.fromkeys(wanted.kernels or CHOICES)]
        for each in chosen:
            each.warn()
        self._libraries = list(dict.fromkeys(each.library for each in chosen))
        self._wanted = wanted
        predictor = OnnxRuntimePredictor(wanted.model, kernels="off")
        self.manifest = predictor.manifest
        predictor.close()

    def profile(self, feed: NetworkBatch) -> Profiled:
        model, threads, _, runs, *_ = self._wanted
        before = roofline.measure(threads)
        recordings = [record(model, feed, threads, library, runs) for library in self._libraries]
        return Profiled(recordings, before.or_better(roofline.measure(threads)), "cpu", model)


class InPyTorch:
    """A checkpoint, on the CPU or on a GPU."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._predictor = PyTorchPredictor(wanted.model, wanted.device or "cpu", wanted.threads)
        self.manifest = self._predictor.manifest

    def profile(self, feed: NetworkBatch) -> Profiled:
        threads, device = self._wanted.threads, self._predictor.device
        on_gpu = device.type == "cuda"
        before = measure_gpu(device) if on_gpu else roofline.measure(threads)
        recordings = [record_pytorch(self._predictor, feed, self._wanted.runs)]
        after = measure_gpu(device) if on_gpu else roofline.measure(threads)
        return Profiled(recordings, before.or_better(after), self._predictor.device_name, None)


class InTensorRT:
    """A plan. Its roof is that of the GPU: measured where PyTorch has it, else published."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._described = check_engine(wanted.model)
        self.manifest = self._described.network
        self._opening: dict[str, Any] = {
            "package": self._described.backend,
            "plugins": libraries_of(wanted.model, self._described),
            "host_code": self._described.version_compatible,
            "device": wanted.device,
        }

    def profile(self, feed: NetworkBatch) -> Profiled:
        model, _, _, runs, *_, gpu = self._wanted
        opened = Plan(model, **self._opening)
        opened.close()
        source = source_of(model, self._described)
        recording = record_plan(model, feed, source, runs, **self._opening)
        return Profiled([recording], self._roof(opened.gpu, gpu), opened.device_name, source)

    def _roof(self, name: str, named: Roofline | None) -> Roofline:
        if torch.cuda.is_available():
            return measure_gpu(torch.device("cuda", parse_device(self._wanted.device or AUTO).number))
        return named or find_gpu(name)
