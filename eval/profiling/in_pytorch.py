"""A checkpoint in PyTorch: every operator with its module and its shapes, timed by torch.profiler.

A dispatch mode sees each operator as the model calls it and puts its number around it, as a range of torch.profiler: on
a CPU the range's length is the operator's time, on a GPU that of the kernels started in it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from eval.profiling.measure import WARM_UP, Recording
from eval.profiling.trace import Execution, Run, Tensor
from training.predictor import PyTorchPredictor
from upsnet.geometry import NetworkBatch

LABEL = "operator number "
QUIET = "99"  # Kineto, the library under the profiler, speaks of every start
# As ONNX calls the operators that are products; the others keep PyTorch's names.
NAMES = {
    "conv2d": "Conv", "conv_transpose2d": "ConvTranspose", "linear": "Gemm", "matmul": "MatMul",
    "deform_conv": "DeformConv2d", "roi_align_fpn": "RoiAlignFpn", "nms": "PaddedNms", "best_anchors": "BestAnchors",
    "panoptic_fusion": "PanopticFusion",
}  # fmt: skip
# What stands between the modules, and which module it is for, as in an exported graph.
METHODS = {
    "normalize": "backbone", "score_proposals": "box_head", "select": "box_head", "mask_logits": "mask_head",
    "fuse": "panoptic_head",
}  # fmt: skip
TYPES = {
    torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "double",
    torch.int8: "int8", torch.uint8: "uint8", torch.int32: "int32", torch.int64: "int64", torch.bool: "bool",
}  # fmt: skip


def record_pytorch(predictor: PyTorchPredictor, batch: NetworkBatch, runs: int) -> Recording:
    """Times `runs` calls without the profile, then as many with it."""
    on_gpu = predictor.device.type == "cuda"
    times = []
    for _ in tqdm(range(WARM_UP + runs), desc="PyTorch, timing", unit="run", disable=None):
        start = time.perf_counter()
        predictor.predict(batch)  # its answer is on the CPU: a GPU is waited for
        times.append(1e3 * (time.perf_counter() - start))
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    lengths, counts = [], [0]
    with _watching(predictor.model) as operators, profile(activities=activities, acc_events=True) as recorded:
        for _ in tqdm(range(WARM_UP + runs), desc="PyTorch, profiling", unit="run", disable=None):
            start = time.perf_counter()
            with operators:
                predictor.predict(batch)
            lengths.append(1e3 * (time.perf_counter() - start))
            counts.append(len(operators.seen))
    timed = list(_timed(operators.seen, recorded, on_gpu))
    profiled = [Run(length, timed[first:last]) for length, (first, last) in zip(lengths, pairwise(counts), strict=True)]
    return Recording("PyTorch", statistics.median(times[WARM_UP:]), profiled[WARM_UP:], None)


def _timed(seen: list[Execution], recorded: Any, on_gpu: bool) -> Iterator[Execution]:
    """The operators with the times of their ranges."""
    ranges = {}
    for event in recorded.events():
        if event.name.startswith(LABEL) and event.device_type == torch.autograd.DeviceType.CPU:
            length = event.device_time_total if on_gpu else event.cpu_time_total
            ranges[int(event.name.removeprefix(LABEL))] = length / 1e3
    for number, each in enumerate(seen):
        yield each._replace(ms=ranges.get(number, 0.0))


class Operators(TorchDispatchMode):
    """Every operator that is called, in order; `within`: the modules and methods that are running, outermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Execution] = []
        self.within: list[tuple[str, str]] = []  # path, and the module of the network that it is for
        self._calls: Counter[tuple[str, str]] = Counter()  # of one run

    def __enter__(self) -> Any:
        self._calls.clear()
        return super().__enter__()

    def __torch_dispatch__(
        self, function: Any, types: Any, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        with record_function(f"{LABEL}{len(self.seen)}"):
            output = function(*given, **(named or {}))
        name = function._schema.name.partition("::")[2]
        inputs, outputs = (list(_tensors(each)) for each in ((given, named), output))
        memory = {each.untyped_storage().data_ptr() for each in inputs}
        is_view = not name.endswith("_") and all(each.untyped_storage().data_ptr() in memory for each in outputs)
        path, module = self.within[-1] if self.within else ("", "")
        described = [tuple(map(_describe, () if is_view else each)) for each in (inputs, outputs)]
        self._calls[path, name] += 1
        where = (path or "UPSNet", name, str(self._calls[path, name]))
        self.seen.append(Execution(where, NAMES.get(name, name), 0.0, described[0], described[1], module))
        return output


def _tensors(value: Any) -> Iterator[TorchTensor]:
    if isinstance(value, TorchTensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _describe(tensor: TorchTensor) -> Tensor:
    return Tensor(TYPES.get(tensor.dtype, ""), tuple(tensor.shape))


@contextmanager
def _watching(model: Any) -> Iterator[Operators]:
    """A mode that knows in which module of the model it is. The model is left as it was."""
    operators = Operators()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                entered = partial(_enter, operators, path)
                stack.callback(module.register_forward_pre_hook(lambda *_, enter=entered: enter()).remove)
                stack.callback(module.register_forward_hook(lambda *_: _leave(operators)).remove)
        methods = [(model, name, module) for name, module in METHODS.items()]
        if hasattr(model, "rpn"):
            methods.append((model.rpn, "propose", "rpn"))
        for owner, name, module in methods:
            setattr(owner, name, _within(operators, getattr(owner, name), f"UPSNet.{name}", module))
            stack.callback(delattr, owner, name)
        yield operators


def _enter(operators: Operators, path: str) -> None:
    operators.within.append((path, path.partition(".")[0]))


def _leave(operators: Operators) -> None:
    operators.within.pop()


def _within(operators: Operators, method: Callable[..., Any], path: str, module: str) -> Callable[..., Any]:
    def inside(*given: Any) -> Any:
        operators.within.append((path, module))
        try:
            return method(*given)
        finally:
            operators.within.pop()

    return inside
