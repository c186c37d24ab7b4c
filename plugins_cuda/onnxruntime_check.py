"""Every operator as a node of ONNX Runtime on a GPU, against its launcher: the same bits, and nothing on the host.

    python -m plugins_cuda.onnxruntime_check --device cuda

Needs PyTorch, torchvision, onnx and, for CUDA, onnxruntime-gpu. `emulated`: the same on the CPU, by the emulator.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any  # an operator's keyword arguments

import onnx
import onnxruntime
import torch
from torch import Tensor

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.benchmark import inputs
from plugins_cuda.benchmark.inputs import QUICK, Sizes
from plugins_cuda.pytorch import Node, node_of, read
from upsnet.kernels.building import find_library

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.int32: onnx.TensorProto.INT32,
    torch.int64: onnx.TensorProto.INT64,
}
SIZES = (QUICK, Sizes(96, 160, 5, 3, 12, 24, 8, 60, 7, 50, 3))  # one session runs both
RUNS = 20  # of each thread


@dataclass(frozen=True)
class Case:
    """An operator, and its arguments for a size, on the CPU."""

    name: str
    operator: Callable[..., Any]
    arguments: Callable[[Sizes], dict[str, Any]]


def cases() -> Iterator[Case]:
    """All nodes, in all types of their features."""

    def pool(dtype: torch.dtype, samples: int, sizes: Sizes) -> dict[str, Any]:
        maps, rois = inputs.pyramid(sizes)
        sampling = {"output_size": sizes.output_size, "sampling_ratio": samples, "rounded_levels": samples == 0}
        return {"features": [each.to(dtype) for each in maps], "rois": rois} | sampling

    def convolve(dtype: torch.dtype, masked: bool, sizes: Sizes) -> dict[str, Any]:
        tensors = inputs.deformed(sizes)
        mask = tensors["offset"][:, ::2].sigmoid().contiguous() if masked else None
        return tensors | {"x": tensors["x"].to(dtype), "weight": tensors["weight"].to(dtype), "mask": mask}

    def fuse(dtype: torch.dtype, heuristic: bool, sizes: Sizes) -> dict[str, Any]:
        tensors = inputs.panoptic(sizes)
        features = {name: tensors[name].to(dtype) for name in ("semantic", "mask_logits")}
        options = {"num_stuff": sizes.stuff, "stuff_area_limit": 64.0, "heuristic": heuristic}
        return tensors | features | options

    def suppress(make: Callable[[Sizes], dict[str, Tensor]], sizes: Sizes) -> dict[str, Any]:
        return make(sizes) | {"iou_threshold": 0.5, "score_threshold": 0.05, "max_output": 20}

    yield Case("nms", plugins_cuda.nms, partial(suppress, inputs.proposals))
    yield Case("nms classes", plugins_cuda.nms, partial(suppress, inputs.detections))
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        yield Case(f"roi_align_fpn {name}", plugins_cuda.roi_align_fpn, partial(pool, dtype, 2))
        yield Case(f"roi_align_fpn {name}, counted", plugins_cuda.roi_align_fpn, partial(pool, dtype, 0))
        yield Case(f"deform_conv {name}", plugins_cuda.deform_conv, partial(convolve, dtype, False))
        yield Case(f"deform_conv {name}, masked", plugins_cuda.deform_conv, partial(convolve, dtype, True))
        yield Case(f"panoptic_fusion {name}", plugins_cuda.panoptic_fusion, partial(fuse, dtype, False))
        yield Case(f"panoptic_fusion {name}, heuristic", plugins_cuda.panoptic_fusion, partial(fuse, dtype, True))


@dataclass(frozen=True)
class Place:
    """Where sessions run. library: the custom operators."""

    device: torch.device
    library: str

    def session(self, node: Node, outputs: Sequence[Tensor], graph: bool = False) -> onnxruntime.InferenceSession:
        """One node, whose tensors may have any size. graph: as a CUDA graph."""
        info = onnx.helper.make_tensor_value_info
        given = [info(f"in{i}", TYPES[each.dtype], [None] * each.ndim) for i, each in enumerate(node.inputs)]
        results = [info(f"out{i}", TYPES[each.dtype], None) for i, each in enumerate(outputs)]
        names = [each.name for each in given], [each.name for each in results]
        attributes: dict[str, Any] = node.attributes
        made = onnx.helper.make_node(node.name, *names, domain="upsnet", **attributes)
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("upsnet", 1)]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([made], "node", given, results), opset_imports=opsets, ir_version=10
        )
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(self.library)
        providers: list[Any] = [CPU]
        if self.device.type == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # nothing on the host
            number = self.device.index if self.device.index is not None else torch.cuda.current_device()
            providers = [(CUDA, {"device_id": str(number), "enable_cuda_graph": str(int(graph))})]
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)

    def run(self, session: onnxruntime.InferenceSession, given: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """On the memory of PyTorch's tensors; returns when it is done."""
        binding, kind, number = session.io_binding(), self.device.type, self.device.index or 0
        for prefix, tensors, bind in (("in", given, binding.bind_input), ("out", results, binding.bind_output)):
            for index, each in enumerate(tensors):
                shape = tuple(each.shape)
                bind(f"{prefix}{index}", kind, number, TYPES[each.dtype], shape, each.data_ptr())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # ONNX Runtime has streams of its own
        session.run_with_iobinding(binding)


@dataclass(frozen=True)
class Call:
    """A case at one size and place. expected: from the launcher."""

    node: Node
    expected: list[Tensor]

    @classmethod
    def of(cls, case: Case, sizes: Sizes, device: torch.device) -> Call:
        values = {name: _moved(value, device) for name, value in case.arguments(sizes).items()}
        result = case.operator(**values)
        schema = importlib.import_module(f"plugins_cuda.{case.operator.__name__}.schema").SCHEMA
        given = inspect.signature(case.operator).bind(**values)
        given.apply_defaults()
        node = node_of(schema, read(schema, given.arguments))
        return cls(node, list(result) if isinstance(result, tuple) else [result])

    def outputs(self) -> list[Tensor]:
        """Of another value than any result."""
        return [torch.full_like(each, 77) for each in self.expected]

    def check(self, found: Sequence[Tensor], what: str) -> None:
        for index, (one, other) in enumerate(zip(found, self.expected, strict=True)):
            assert torch.equal(one, other), f"{what}: output {index} differs in {(one != other).sum()} values"


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [each.to(device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


def check(case: Case, place: Place) -> None:
    """AssertionError where a node gives other bits than the launcher."""
    calls = [Call.of(case, sizes, place.device) for sizes in SIZES]
    session = place.session(calls[0].node, calls[0].expected)
    for call in (*calls, calls[0]):
        results = call.outputs()
        place.run(session, call.node.inputs, results)
        call.check(results, "one session, several sizes")
    _check_threads(place, session, calls)
    if place.device.type == "cuda":
        _check_graph(place, calls[0])


def _check_threads(place: Place, session: onnxruntime.InferenceSession, calls: Sequence[Call]) -> None:
    """One session, several threads: each has a stream and memory of its own."""
    faults: list[BaseException] = []

    def work(call: Call) -> None:
        try:
            for _ in range(RUNS if place.device.type == "cuda" else 2):
                results = call.outputs()
                place.run(session, call.node.inputs, results)
                call.check(results, "several threads")
        except BaseException as error:  # of any kind: the thread that waits must know
            faults.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in (*calls, *calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def _check_graph(place: Place, call: Call) -> None:
    """Captured on zeros, replayed on the case's inputs: in the same memory, as graphs want it."""
    session = place.session(call.node, call.expected, graph=True)
    given, results = [torch.zeros_like(each) for each in call.node.inputs], call.outputs()
    for _ in range(3):  # ONNX Runtime runs once or twice before it captures
        place.run(session, given, results)
    for one, other in zip(given, call.node.inputs, strict=True):
        one.copy_(other)
    place.run(session, given, results)
    call.check(results, "a CUDA graph")


def failures(place: Place) -> dict[str, str]:
    """Runs everything, prints a line a case; what failed, and why."""
    failed = {}
    for case in cases():
        print(f"{case.name}: ", end="", flush=True)
        start = time.perf_counter()
        try:
            check(case, place)
        except Exception as error:  # the other cases still count
            failed[case.name] = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{failed.get(case.name, 'ok')} ({time.perf_counter() - start:.2f} s)", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m plugins_cuda.onnxruntime_check")
    parser.add_argument("--device", choices=("cuda", "emulated"), required=True)
    emulated = parser.parse_args(arguments).device == "emulated"
    device = torch.device("cpu") if emulated else torch.device("cuda", torch.cuda.current_device())
    if not emulated:
        onnxruntime.preload_dlls()  # CUDA and cuDNN, from the packages that PyTorch brings
    architecture = "" if emulated else library.gpu_architecture(device)
    path = find_library(f"onnxruntime_{'emulated' if emulated else 'cuda'}", architecture)
    with library.emulation() if emulated else nullcontext():
        failed = failures(Place(device, str(path)))
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
