"""ONNX -> TensorRT plan, by TensorRT or TensorRT-RTX.

A process of its own (`python -m export.backends.tensorrt_builder`), since a failing parser can abort the process. It
reads a `Request` as JSON from stdin, and writes lines of JSON: how far it is (`Progress`), at the end the Outcome.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from export.backends.timing_cache import TimingCache
from export.options import EngineOptions
from export.outcome import Outcome
from export.types import wrong_types
from upsnet.engines.manifest import Counts, Profile
from upsnet.errors import InputError
from upsnet.files import writing
from upsnet.manifest import Manifest
from upsnet.tensorrt import api as trt_api
from upsnet.tensorrt.api import Api, load_plugins, make_logger, open_api, too_old

# The layers that hold weights: their types are the network's precision.
HEAVY_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
OFTEN = 0.1  # seconds between two words of progress


class Request(BaseModel):
    """What to build."""

    package: trt_api.Name
    model: Path
    manifest: Manifest
    plan: Path
    plugins: Path | None  # the library with the custom operators; None to go without
    profiles: tuple[Profile, ...]
    options: EngineOptions


class Progress(BaseModel):
    share: float  # of the build, 0 to 1
    phase: str


def build(api: Api, request: Request, report: Callable[[Progress], None] = lambda progress: None) -> Outcome:
    """Parse, look at the types, build; the plan is written only where all of it went well."""
    start = time.monotonic()
    trt = api.module
    if problem := too_old(api.name, api.version):
        return Outcome(status="absent", reason=problem)
    logger = make_logger(api)
    builder = trt.Builder(logger)
    if request.plugins is not None and (error := load_plugins(api, request.plugins)):
        return Outcome(status="refused", stage="plugins", errors=[error])
    network = trt_api.make_network(api, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(request.model.read_bytes()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        found = sorted({f"{e.node_operator()} ({e.node_name()}): {e.desc()}" for e in errors})
        return Outcome(status="refused", stage="parser", errors=found)
    layers, operators = count_types(api, network)
    if wrong := wrong_types(request.manifest, layers):
        return Outcome(status="refused", stage="types", errors=wrong, layers=layers, plugins=operators)
    logger.errors.clear()
    config = builder.create_builder_config()
    for profile in request.profiles:
        shapes = builder.create_optimization_profile()
        for name, (low, usual, high) in profile.items():
            shapes.set_shape(name, low, usual, high)
        config.add_optimization_profile(shapes)
    trt_api.set_flag(api, config, "TF32", request.manifest.precision == "tf32")
    trt_api.keep_layers(api, config)
    _set_options(api, config, request.options, fp8=any("FP8" in kinds for kinds in layers.values()))
    config.progress_monitor = monitor = trt_api.make_monitor(api, Phases(report))
    cache = None
    if "timing_cache" in trt_api.BUILDER_OPTIONS[api.name]:
        cache = TimingCache.of(api, config, request.options.timing_cache)
    serialized = builder.build_serialized_network(network, config)
    del monitor
    if serialized is None:
        errors = logger.errors or ["the builder made no engine and said nothing"]
        limit = request.options.workspace
        hint = None if limit is None else f"--workspace may be too little: {limit} bytes"
        return Outcome(status="refused", stage="builder", errors=errors, reason=hint)
    with writing(request.plan), request.plan.open("wb") as stream:
        stream.write(memoryview(serialized))
    if cache is not None:
        cache.keep()
    return Outcome(
        status="built",
        bytes=request.plan.stat().st_size,
        seconds=round(time.monotonic() - start, 2),
        version=api.version,
        built_with=_built_with(api),
        layers=layers,
        plugins=operators,
        kernel_abi=None if request.plugins is None else _kernel_abi(request.plugins),
        notes=cache.notes if cache is not None and cache.notes else None,
    )


def _set_options(api: Api, config: Any, options: EngineOptions, fp8: bool) -> None:
    """fp8: whether a layer computes in FP8. InputError for a value that this builder does not have."""
    if options.workspace is not None:
        config.set_memory_pool_limit(api.module.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    for name in ("version_compatible", "weight_streaming", "refit"):
        if getattr(options, name):
            trt_api.set_flag(api, config, name.upper())
    if options.hardware_compatible is not None:
        trt_api.set_hardware_compatible(api, config, options.hardware_compatible)
    capabilities = options.compute_capabilities
    if fp8 and "compute_capabilities" in trt_api.BUILDER_OPTIONS[api.name]:
        capabilities = capabilities or trt_api.fp8_capabilities(api)
    if capabilities:
        trt_api.set_compute_capabilities(api, config, capabilities)


def _built_with(api: Api) -> dict[str, str]:
    """What else takes part: the ONNX parser, and the CUDA version that the package was made for, where its name says
    so."""
    found = {"onnx parser": str(api.module.get_nv_onnx_parser_version())}
    if version := trt_api.cuda_of(api.name):
        found["cuda"] = version
    return found


def _kernel_abi(library: Path) -> int | None:
    """See plugins_cuda/tensorrt/kernel_abi.h; older libraries have none."""
    number = getattr(ctypes.CDLL(str(library.resolve())), "upsnet_kernel_abi", None)
    return None if number is None else int(number())


def count_types(api: Api, network: Any) -> tuple[Counts, Counts]:
    """`layers` and `plugins` of an Outcome; `network` is TensorRT's, which has no types.

    A layer of weights counts as what it computes in: the type that it reads rounded (INT8, FP8), else that of its
    output. The network is strongly typed, so the builder changes none of them.
    """
    trt = api.module
    layers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    operators: defaultdict[str, Counter[str]] = defaultdict(Counter)
    every = [network.get_layer(index) for index in range(network.num_layers)]
    rounded = {
        layer.get_output(0).name: layer.get_input(0).dtype.name
        for layer in every
        if layer.type == trt.LayerType.DEQUANTIZE
    }
    for layer in every:
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            operators[core.plugin_name][layer.get_input(0).dtype.name] += 1
        elif layer.type.name in HEAVY_LAYERS:
            layers[layer.type.name][rounded.get(layer.get_input(0).name, layer.get_output(0).dtype.name)] += 1
    return {name: dict(kinds) for name, kinds in layers.items()}, {n: dict(kinds) for n, kinds in operators.items()}


class _Phase(NamedTuple):
    parent: str | None
    steps: int
    done: int


class Phases:
    """TensorRT's phases, which lie in one another, as one number that only grows. Several threads call it."""

    def __init__(self, report: Callable[[Progress], None], often: float = OFTEN) -> None:
        self._report, self._often = report, often
        self._open: dict[str, _Phase] = {}
        self._share, self._said = 0.0, 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[phase] = _Phase(parent, max(1, steps), 0)
            self._say(phase)

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            if phase in self._open:
                self._open[phase] = self._open[phase]._replace(done=step + 1)
                self._say(phase)

    def finish(self, phase: str) -> None:
        with self._lock:
            self._open.pop(phase, None)

    def _say(self, phase: str) -> None:
        """`phase` is one of the innermost: its share of a step of its parent's, and so on up."""
        share, name, depth = 0.0, phase, len(self._open)
        while name in self._open and depth:
            parent, steps, done = self._open[name]
            share = min(1.0, (done + share) / steps)
            name, depth = parent or "", depth - 1
        self._share = max(self._share, share)
        now = time.monotonic()
        if now - self._said >= self._often:
            self._said = now
            self._report(Progress(share=self._share, phase=phase))


def main() -> None:
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what TensorRT prints itself belongs to the other lines that no program reads
    request = Request.model_validate_json(sys.stdin.read())
    try:
        outcome = build(
            open_api(request.package), request, lambda progress: print(progress.model_dump_json(), file=lines)
        )
    except InputError as error:  # an option's value, a disk that is full
        outcome = Outcome(status="refused", stage="builder", errors=[str(error)])
    print(outcome.model_dump_json(), file=lines)


if __name__ == "__main__":
    main()
