"""Where the time of one pass goes, part by part, and the least that each part has to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from training.model.upsnet import UPSNet

# One after the other, none inside another: what is called, and of which module.
PARTS = {
    "normalize": "normalize",
    "backbone": "backbone.forward",
    "FPN": "fpn.forward",
    "semantic head": "semantic_head.forward",
    "RPN": "rpn.forward",
    "proposals": "rpn.propose",
    "box head": "box_head.forward",
    "selection": "select",
    "mask head": "mask_head.forward",
    "RoIAlign": "roi_features",
    "panoptic fusion": "fuse",
}
REST = "the rest"


class Cost(NamedTuple):
    """Of one part. operations: of floating point, a multiply-add is two. bytes: of weights, inputs and outputs."""

    ms: float
    operations: float
    bytes: float


@contextmanager
def wrapped(
    model: UPSNet, around: Callable[[str, nn.Module, Callable[..., Any], tuple[Any, ...], Any], Any]
) -> Iterator[None]:
    """Inside, each part is called as around(name, its module, function, arguments, named arguments)."""
    places = []
    for name, path in PARTS.items():
        owner, _, method = path.rpartition(".")
        module = model.get_submodule(owner)
        function = getattr(module, method)

        def call(*args: Any, _name: str = name, _module: nn.Module = module, _f: Any = function, **named: Any) -> Any:
            return around(_name, _module, _f, args, named)

        object.__setattr__(module, method, call)
        places.append((module, method))
    try:
        yield
    finally:
        for module, method in places:
            object.__delattr__(module, method)


def measure(model: UPSNet, inputs: list[Tensor], passes: int = 3) -> dict[str, Cost]:
    """Of an eager pass, the best of several. What lies between the parts is `REST`."""
    count = _least(model, inputs)
    best: dict[str, float] = {}
    for _ in range(passes):
        for name, ms in _times(model, inputs).items():
            best[name] = min(ms, best.get(name, ms))
    return {name: Cost(ms, *count.get(name, (0.0, 0.0))) for name, ms in best.items()}


def _times(model: UPSNet, inputs: list[Tensor]) -> dict[str, float]:
    """Milliseconds, by CUDA's events on a GPU: nothing waits for the device before the end."""
    on_gpu = inputs[0].is_cuda
    spans: list[tuple[str, Any, Any]] = []

    def stamp() -> Any:
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], named: Any) -> Any:
        start = stamp()
        result = function(*args, **named)
        spans.append((name, start, stamp()))
        return result

    with wrapped(model, around), torch.no_grad():
        start = stamp()
        model(*inputs)
        spans.append((REST, start, stamp()))
    if on_gpu:
        torch.cuda.synchronize()
    times: dict[str, float] = dict.fromkeys([*PARTS, REST], 0.0)
    for name, begin, end in spans:
        times[name] += begin.elapsed_time(end) if on_gpu else 1e3 * (end - begin)
    times[REST] = max(0.0, times[REST] - sum(ms for name, ms in times.items() if name != REST))
    return times


def _least(model: UPSNet, inputs: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Operations and bytes of each part."""
    found: dict[str, tuple[float, float]] = {}

    def around(name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], named: Any) -> Any:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.upsnet.deform_conv: _deform_conv}) as counter:
            result = function(*args, **named)
        weights = list(module.parameters()) if PARTS[name].endswith("forward") else []
        moved = sum(each.numel() * each.element_size() for each in _tensors([weights, args, named, result]))
        operations, before = found.get(name, (0.0, 0.0))
        found[name] = operations + counter.get_total_flops(), before + moved
        return result

    with wrapped(model, around), torch.no_grad():
        model(*inputs)
    return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _deform_conv(x: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the shapes: a product for each output value, and four for each value between pixels."""
    batch, channels = x[:2]
    outputs, inputs, kernel_height, kernel_width = weight
    places = batch * offset[2] * offset[3]
    return 2 * places * kernel_height * kernel_width * (outputs * inputs + 4 * channels)
