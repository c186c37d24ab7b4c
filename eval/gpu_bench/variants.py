"""Each way of running a network, as a function from a batch in the host's memory to the answer there.

Each raises Skip where it cannot be had on this machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.gpu_bench import cases
from eval.gpu_bench.cases import BATCHES, Case
from eval.gpu_bench.network import make_network
from plugins_cuda import library
from plugins_cuda.benchmark.timing import capture
from plugins_cuda.gpu_check.process import Skip
from training.model.upsnet import UPSNet
from training.predictor import true_float32
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import RawPrediction

Run = Callable[[NetworkBatch], RawPrediction]
Forward = Callable[..., Sequence[Tensor]]


class Machine:
    """Where it runs. scratch: files that are made on the way, for later cases too."""

    def __init__(self, device: torch.device, scratch: Path) -> None:
        self.device, self.scratch = device, scratch

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def load_network(case: Case, machine: Machine) -> UPSNet:
    """On the device; on a GPU in channels-last order, as `compute.channels_last` of the configurations says."""
    model = make_network(case.network, case.precision)[0].to(machine.device)  # type: ignore[arg-type]
    return model.to(memory_format=torch.channels_last) if machine.on_gpu else model  # type: ignore[call-overload]


class Copies:
    """The batch into pinned memory and onto the device, the answer back the same way. It is one size's."""

    def __init__(self, batch: NetworkBatch, machine: Machine) -> None:
        self.machine = machine
        self.host = [self._pinned(torch.from_numpy(array)) for array in batch]
        self.device = [tensor.to(machine.device) for tensor in self.host]
        self.answer: list[Tensor] = []

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.machine.on_gpu else tensor.clone()

    def send(self, batch: NetworkBatch) -> list[Tensor]:
        """Into the same tensors on the device every time, as a CUDA graph wants it."""
        for array, host, device in zip(batch, self.host, self.device, strict=True):
            host.copy_(torch.from_numpy(array))
            device.copy_(host, non_blocking=True)
        return self.device

    def receive(self, outputs: Sequence[Tensor]) -> RawPrediction:
        self.answer = self.answer or [self._pinned(torch.empty_like(each, device="cpu")) for each in outputs]
        for host, output in zip(self.answer, outputs, strict=True):
            host.copy_(output, non_blocking=True)
        self.machine.synchronize()
        return RawPrediction(*(host.numpy() for host in self.answer))


def around(forward: Forward, batch: NetworkBatch, machine: Machine, operators: bool = True) -> Run:
    """A network that takes and gives tensors on the device. operators: compiled, or their definitions."""
    copies = Copies(batch, machine)

    def context() -> AbstractContextManager[None]:
        return nullcontext() if operators else library.definitions()

    def run(batch: NetworkBatch) -> RawPrediction:
        with torch.no_grad(), true_float32(), context():
            return copies.receive(forward(*copies.send(batch)))

    return run


def eager(case: Case, machine: Machine, operators: bool = True) -> Callable[[NetworkBatch], Run]:
    if operators and library.compiled(machine.device) is None:
        raise Skip("the compiled operators cannot be had here")
    model = load_network(case, machine)
    return lambda batch: around(model, batch, machine, operators)


def graphed(case: Case, machine: Machine) -> Callable[[NetworkBatch], Run]:
    if not machine.on_gpu:
        raise Skip("CUDA graphs need a GPU")
    model = load_network(case, machine)

    def prepare(batch: NetworkBatch) -> Run:
        copies = Copies(batch, machine)
        outputs: list[Tensor] = []

        def forward() -> None:
            outputs[:] = model(*copies.device)

        with torch.no_grad(), true_float32():
            graph = capture(forward)

        def run(batch: NetworkBatch) -> RawPrediction:
            with torch.no_grad():
                copies.send(batch)
                graph.replay()
                return copies.receive(outputs)

        return run

    return prepare


def compiled(case: Case, machine: Machine) -> Callable[[NetworkBatch], Run]:
    """The whole network as one graph, compiled for each shape of its own."""
    options: dict[str, Any] = {"mode": "reduce-overhead"} if machine.on_gpu else {"backend": "aot_eager"}
    model = torch.compile(load_network(case, machine), fullgraph=True, dynamic=False, **options)
    return lambda batch: around(model, batch, machine)


def ahead_of_time(case: Case, machine: Machine) -> Callable[[NetworkBatch], Run]:
    """torch.export's program, compiled into a package for each shape, which is loaded again."""
    model = load_network(case, machine)

    def prepare(batch: NetworkBatch) -> Run:
        package = machine.scratch / f"{case.network}_{case.precision}_{len(batch.images)}.pt2"
        example = tuple(torch.from_numpy(array).to(machine.device) for array in batch)
        with torch.no_grad(), true_float32():
            program = torch.export.export(model, example, strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        return around(torch._inductor.aoti_load_package(str(package)), batch, machine)

    return prepare


def onnx_runtime(case: Case, machine: Machine, operators: bool = True) -> Callable[[NetworkBatch], Run]:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise Skip(f"not installed: {', '.join(missing)}")
    from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor, problem_with_cuda

    if machine.on_gpu and (problem := problem_with_cuda()):
        raise Skip(problem)
    if case.precision == "bf16":
        raise Skip("ONNX Runtime has no kernels for bf16 of several operators")
    kernels = "auto" if operators else "off"
    predictor = OnnxRuntimePredictor(export(case, machine), device=machine.device.type, kernels=kernels)
    if operators and "function bodies" in predictor.kernels:
        raise Skip(f"its operators cannot be had: {predictor.kernels}")
    return lambda batch: predictor.predict


def tensorrt(case: Case, machine: Machine) -> Callable[[NetworkBatch], Run]:
    if importlib.util.find_spec("tensorrt") is None:
        raise Skip("not installed: tensorrt")
    from export.building import build_engine
    from export.options import EngineOptions
    from export.profiles import chosen_profiles
    from upsnet.runtimes.open import open_runtime
    from upsnet.runtimes.options import RuntimeOptions

    model = export(case, machine)
    folder = machine.scratch / f"{model.stem}_engine"
    manifest = make_network(case.network, case.precision)[1]  # type: ignore[arg-type]
    profiles = chosen_profiles(manifest.resize, max(BATCHES), batch=(min(BATCHES), min(BATCHES), max(BATCHES)))
    if not (folder / "engine.json").is_file():
        build_engine(model, folder, backend="tensorrt", options=EngineOptions(profiles=profiles))
    predictor = open_runtime(RuntimeOptions(run=folder, runtime="tensorrt"))
    return lambda batch: predictor.predict


def export(case: Case, machine: Machine) -> Path:
    """The network's ONNX file, made once for all cases."""
    from export.onnx_export import write_onnx

    path = machine.scratch / f"{case.network}_{case.precision}.onnx"
    if not path.is_file():
        write_onnx(*make_network(case.network, case.precision), path)  # type: ignore[arg-type]
    return path


def open_case(case: Case, machine: Machine) -> Callable[[NetworkBatch], Run]:
    """What prepares a run for batches of one size. Skip, or whatever fails."""
    if case.variant in (cases.REFERENCE, cases.EAGER):
        return eager(case, machine, operators=case.variant == cases.EAGER)
    if case.variant in (cases.ORT, cases.ORT_BODIES):
        return onnx_runtime(case, machine, operators=case.variant == cases.ORT)
    others = {
        cases.GRAPH: graphed,
        cases.COMPILE: compiled,
        cases.AOT: ahead_of_time,
        cases.TENSORRT: tensorrt,
    }
    return others[case.variant](case, machine)
