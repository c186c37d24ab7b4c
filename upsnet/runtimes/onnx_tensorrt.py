"""ONNX Runtime's TensorRT provider: it builds engines of the ONNX file when it is loaded, with our plugins in them.

The provider asks TensorRT's parser for every node. A node of ours is taken where the plugin of its name is registered;
what is not taken runs on CUDA, from the compiled kernels or the function's body, as in onnx_runtime.py. The types are
the file's (no fp16 switch); TF32 the provider leaves to TensorRT, which uses it for float32 unless the environment has
NVIDIA_TF32_OVERRIDE=0.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from upsnet.contract import INPUTS, PLUGINS, manifest_path
from upsnet.device import parse_device
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.kernels.choice import wanted_kernels
from upsnet.manifest import Manifest
from upsnet.runtimes.onnx_runtime import (
    LOAD_ERRORS,
    OnnxRuntimePredictor,
    first_reason,
    manifest_in,
    problem_with_cuda,
    start_with_kernels,
)

TENSORRT = "TensorrtExecutionProvider"
ENGINE_FOLDER = "engine"  # of a run: what `upsnet engine` has built of it
CACHE = "onnxruntime_tensorrt"  # folder beside the model: the engines that the provider has built
PLUGINS_VARIABLE = "UPSNET_PLUGINS"
OTHER = "the runtime onnxruntime runs it on CUDA"


class TensorRTProviderPredictor(OnnxRuntimePredictor):
    """An exported model, as much of it as TensorRT takes in TensorRT. InputError where that provider cannot be had: it
    is chosen by name, and nothing takes its place."""

    name = "onnxruntime-tensorrt"

    def __init__(
        self, model: Path, threads: int | None = None, device: str = "cuda", kernels: str | None = None
    ) -> None:
        model, wanted = Path(model), parse_device(device)
        if wanted.kind == "cpu":
            raise InputError(f"{model}: TensorRT runs on an NVIDIA GPU alone, not on device cpu; {OTHER} or the CPU")
        if not model.is_file():
            raise InputError(f"{model}: no such model; export it with `make onnx`")
        if problem := problem_with_tensorrt():
            raise InputError(f"{model}: no TensorRT provider ({problem}); {OTHER}")
        library = find_plugins(model)
        options = provider_options(model, wanted.number, library, Manifest.load(manifest_path(model)))
        kernels, ahead = wanted_kernels(kernels), [(TENSORRT, options)]
        ort.disable_telemetry_events()
        try:
            self.session, used = start_with_kernels(model, threads, kernels, wanted.number, ahead)
        except (*LOAD_ERRORS, RuntimeError) as error:
            raise InputError(f"{model}: the TensorRT provider cannot run it ({first_reason(error)}); {OTHER}") from None
        if self.session.get_providers()[0] != TENSORRT:
            raise InputError(
                f"{model}: the TensorRT provider does not load; ONNX Runtime's lines on stderr say why; {OTHER}"
            )
        self.kernels = f"{library.name}, and {used} for what TensorRT does not take"
        self.device_name = f"cuda:{wanted.number}"
        self.manifest = manifest_in(self.session, model)


def problem_with_tensorrt() -> str | None:
    """Why the provider cannot be had here; None where it has to be tried."""
    if TENSORRT not in ort.get_available_providers():
        return "the package onnxruntime has none; install onnxruntime-gpu in its place, and tensorrt"
    return problem_with_cuda()


def find_plugins(model: Path) -> Path:
    """The library of TensorRT's plugins: $UPSNET_PLUGINS, else the one beside the model, else that of the engine's
    folder below it. InputError without."""
    if variable := os.environ.get(PLUGINS_VARIABLE):
        if not Path(variable).is_file():
            raise InputError(f"{variable}: no such plugin library, and {PLUGINS_VARIABLE} names it; unset it")
        return Path(variable)
    places = [model.with_name(PLUGINS), model.parent / ENGINE_FOLDER / PLUGINS]
    found = next((each for each in places if each.is_file()), None)
    if found is None:
        raise InputError(
            f"{model}: no {PLUGINS} beside it or in {ENGINE_FOLDER}/, without which TensorRT knows none of our "
            f"operators: `make plugins engine` puts one into {ENGINE_FOLDER}/, and {PLUGINS_VARIABLE} names another; "
            f"{OTHER} without it"
        )
    return found


def provider_options(model: Path, gpu: int, plugins: Path, manifest: Manifest) -> dict[str, str]:
    """Engines and timings are kept beside the model where that folder can be written to."""
    cache = model.resolve().parent / CACHE
    keep = os.access(cache.parent, os.W_OK)
    smallest, usual, largest = (
        ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in zip(INPUTS, shapes, strict=True))
        for shapes in profile(manifest.resize, manifest.max_batch)
    )
    caches = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_engine_cache_prefix": "upsnet",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    return {
        "device_id": str(gpu),
        "trt_extra_plugin_lib_paths": str(plugins.resolve()),
        "trt_fp16_enable": "0",  # the file has its types
        "trt_profile_min_shapes": smallest,
        "trt_profile_opt_shapes": usual,
        "trt_profile_max_shapes": largest,
        **(caches if keep else {}),
    }


def profile(resize: ResizeRule, max_batch: int) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of the inputs: the smallest, those of one photo of 4:3, the largest."""
    usual = resize.padded_size(*resize.network_size(480, 640))
    longest = resize.padded_size(resize.max_side, resize.max_side)
    images = ((1, resize.divisor, resize.divisor), (1, *usual), (max_batch, *longest))
    return [((batch, *sides, 3), (batch, 2), (batch,)) for batch, *sides in images]
