"""ONNX -> TensorRT plan. One program for TensorRT and TensorRT-RTX, whose Python interfaces agree.

It runs as a process of its own (`python -m export.tensorrt_build`), since a failing parser can abort the process.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from upsnet.contract import manifest_path
from upsnet.files import atomic_path
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.report import Sparse

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
Counts = dict[str, Counter[str]]  # name -> type -> how many

# The layers that hold weights: their types are the network's precision.
HEAVY_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
# Every builder without a GPU logs these errors, and builds all the same.
WITHOUT_A_GPU = ("CUDA initialization failure", "catchCudaError")


class Library(BaseModel):
    """A library of operators that an engine was built with, as engine.json has it."""

    file: str
    sha256: str


class Outcome(Sparse):
    """What became of one engine, as engine.json has it. Which keys there are depends on the status."""

    status: Literal["built", "refused", "absent"]
    stage: str | None = None  # refused: plugins, parser, builder or process
    errors: list[str] | None = None  # refused
    reason: str | None = None  # absent: why; refused without plugins: the cure
    file: str | None = None
    nodes: int | None = None
    bytes: int | None = None
    version: str | None = None  # TensorRT's
    layers: Counts | None = None  # HEAVY_LAYERS by the type that they compute in
    plugins: Counts | None = None  # custom operators by the type of their first input
    kernels: str | None = None  # ONNX Runtime's: the library's name, or that function bodies serve, and why
    kernel_abi: int | None = None  # of the plugins: an engine runs with plugins of the same number alone

    def __str__(self) -> str:
        """Why it was not built; else its size, its kernels, and what its layers of weights and plugins compute in."""
        if self.status != "built":
            return self.reason or "; ".join(self.errors or [])
        counts = {**(self.layers or {}), **(self.plugins or {})}
        parts = [f"{count} {name} {kind}" for name, kinds in counts.items() for kind, count in kinds.items()]
        kernels = f"kernels: {self.kernels}" if self.kernels else ""
        return "; ".join(filter(None, [f"{(self.bytes or 0) / 1e6:.1f} MB", kernels, ", ".join(parts)]))


def optimization_profile(resize: ResizeRule, max_batch: int) -> Profile:
    """Smallest, usual (one photo of 4:3) and largest (`max_batch` of the longest side) shape of each input."""

    def padded(side: int) -> int:
        return -(-side // resize.divisor) * resize.divisor

    low = resize.divisor
    usual = (padded(resize.short_side), padded(min(resize.max_side, round(resize.short_side * 4 / 3))))
    high = padded(resize.max_side)
    return {
        "images": ((1, low, low, 3), (1, *usual, 3), (max_batch, high, high, 3)),
        "sizes": ((1, 2), (1, 2), (max_batch, 2)),
        "scales": ((1,), (1,), (max_batch,)),
    }


def build(trt: ModuleType, model: Path, plan: Path, profile: Profile, plugins: Path | None) -> Outcome:
    """Parse and build; `plugins`: the library with the custom operators, None to go without."""
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    if plugins is not None:
        error = _load_plugins(trt, plugins)
        if error:
            return Outcome(status="refused", stage="plugins", errors=[error])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        found = sorted({f"{e.node_operator()} ({e.node_name()}): {e.desc()}" for e in errors})
        return Outcome(status="refused", stage="parser", errors=found)
    layers, operators = _count_types(trt, network)
    logger.errors.clear()
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, (low, usual, high) in profile.items():
        shapes.set_shape(name, low, usual, high)
    config.add_optimization_profile(shapes)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        errors = logger.errors or ["the builder made no engine and said nothing"]
        return Outcome(status="refused", stage="builder", errors=errors)
    with atomic_path(plan) as temporary:
        temporary.write_bytes(bytes(serialized))
    size = plan.stat().st_size
    kernel_abi = None if plugins is None else _kernel_abi(plugins)
    return Outcome(
        status="built", bytes=size, version=trt.__version__, layers=layers, plugins=operators, kernel_abi=kernel_abi
    )


def _make_logger(trt: ModuleType) -> Any:  # Any: its class exists only where TensorRT does, which has no types
    """A logger that keeps the errors."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            if severity in errors and not any(text in message for text in WITHOUT_A_GPU):
                self.errors.append(message)

    return Logger()


def _load_plugins(trt: ModuleType, library: Path) -> str:
    """Load the library, which registers its plugins itself. Returns what is wrong, else ""."""
    registry = trt.get_plugin_registry()
    before = len(registry.all_creators)
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return f"the plugin library cannot be loaded ({error}); build it again with `make plugins`"
    if len(registry.all_creators) == before:
        return f"{library} registered no plugin with {trt.__name__} {trt.__version__}; build it with `make plugins`"
    return ""


def _kernel_abi(library: Path) -> int | None:
    """See plugins_cuda/tensorrt/kernel_abi.h; older libraries have none."""
    number = getattr(ctypes.CDLL(str(library.resolve())), "upsnet_kernel_abi", None)
    return None if number is None else int(number())


def _count_types(trt: ModuleType, network: Any) -> tuple[Counts, Counts]:
    """`layers` and `plugins` of an Outcome; `network` is TensorRT's, which has no types."""
    layers: Counts = defaultdict(Counter)
    operators: Counts = defaultdict(Counter)
    every = [network.get_layer(index) for index in range(network.num_layers)]
    rounded = {layer.get_output(0).name for layer in every if layer.type == trt.LayerType.DEQUANTIZE}
    for layer in every:
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            operators[core.plugin_name][layer.get_input(0).dtype.name] += 1
        elif layer.type.name in HEAVY_LAYERS:
            kind = "INT8" if layer.get_input(0).name in rounded else layer.get_output(0).dtype.name
            layers[layer.type.name][kind] += 1
    return layers, operators


def main() -> None:
    """argv: module name, model, plan, plugin library or "". The Outcome is the last line, as JSON."""
    module, model, plan, plugins = sys.argv[1:]
    manifest = Manifest.load(manifest_path(Path(model)))
    profile = optimization_profile(manifest.resize, manifest.max_batch)
    library = Path(plugins) if plugins else None
    print(build(importlib.import_module(module), Path(model), Path(plan), profile, library).model_dump_json())


if __name__ == "__main__":
    main()
