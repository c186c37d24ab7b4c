"""The runtimes, and what one is opened with. A new runtime is a module of its own and an entry of `RUNTIMES`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from upsnet.engines.manifest import ENGINES
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.runtimes.tls import Tls

SCHEME = "grpc://"
TLS_SCHEME = "grpcs://"
SERVER = "127.0.0.1:8001"  # `make serve`


class RuntimeOptions(NamedTuple):
    """Which model runs, in which runtime, and how. None: what the runtime does by itself."""

    run: PathLike | None = None  # any model that `upsnet.load` takes
    runtime: str | None = None  # None: the one that the model is for
    checkpoint: PathLike | None = None  # pytorch: this file instead of the run's
    model: PathLike | None = None  # onnxruntime, onnxruntime-tensorrt: this file instead of the run's
    url: str | None = None  # triton: host:port of the server's gRPC
    manifest: PathLike | None = None  # of the model that a server runs; None: the server tells it
    threads: int | None = None  # of the CPU
    device: str | None = None  # see upsnet/device.py; None: auto
    short_sides: Sequence[int] = ()  # with `flip`, test-time augmentation: see training/predictor.py
    flip: bool = False
    tls: Tls | PathLike | bool | None = None  # to a server: see `upsnet.Client`
    shared_memory: bool | None = None  # with a server: see there
    version: int | None = None  # of a server's model; None: the one in service
    engine: PathLike | None = None  # tensorrt, tensorrt-rtx, torch-tensorrt: this file instead of the run's


class Runtime(NamedTuple):
    title: str  # its name as people write it
    predictor: str  # module:class, which is called with the model's place and the options that the runtime takes
    place: str  # the option that names a model for this runtime alone
    needs: str  # what that is, in words
    file: str | None  # what it opens in a folder; None: an address
    takes: tuple[str, ...]  # options
    extra: str  # of the distribution, which brings its packages
    packages: tuple[str, ...] = ()  # modules that it needs one of
    gpu: bool = False  # it computes on one alone


RUNTIMES = {
    "pytorch": Runtime(
        title="PyTorch",
        predictor="training.predictor:PyTorchPredictor",
        place="checkpoint",
        needs="a checkpoint",
        file="last.safetensors",
        takes=("threads", "device", "short_sides", "flip"),
        extra="train",
    ),
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        predictor="upsnet.runtimes.onnx_runtime:OnnxRuntimePredictor",
        place="model",
        needs="an ONNX model",
        file="model.onnx",
        takes=("threads", "device"),
        extra="onnxruntime",
    ),
    "onnxruntime-tensorrt": Runtime(
        title="ONNX Runtime with TensorRT",
        predictor="upsnet.runtimes.onnx_tensorrt:TensorRTProviderPredictor",
        place="model",
        needs="an ONNX model",
        file=ENGINES["onnxruntime"],
        takes=("threads", "device"),
        extra="gpu",
        packages=("onnxruntime",),
        gpu=True,
    ),
    "tensorrt": Runtime(
        title="TensorRT",
        predictor="upsnet.runtimes.tensorrt:TensorRTPredictor",
        place="engine",
        needs="a plan of TensorRT",
        file=ENGINES["tensorrt"],
        takes=("device",),
        extra="gpu",
        packages=("tensorrt",),
        gpu=True,
    ),
    "tensorrt-rtx": Runtime(
        title="TensorRT-RTX",
        predictor="upsnet.runtimes.tensorrt:TensorRTRTXPredictor",
        place="engine",
        needs="a plan of TensorRT-RTX",
        file=ENGINES["tensorrt-rtx"],
        takes=("device",),
        extra="rtx",
        packages=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        gpu=True,
    ),
    "torch-tensorrt": Runtime(
        title="Torch-TensorRT",
        predictor="export.torch_tensorrt_predictor:TorchTensorRTPredictor",
        place="engine",
        needs="a program of Torch-TensorRT",
        file=ENGINES["torch-tensorrt"],
        takes=("device",),
        extra="gpu",
        packages=("torch_tensorrt",),
        gpu=True,
    ),
    "triton": Runtime(
        title="Triton",
        predictor="upsnet.client.predictor:PhotoTritonPredictor",
        place="url",
        needs="the address of a running server (host:port of its gRPC)",
        file=None,
        takes=("manifest", "tls", "shared_memory", "version"),
        extra="triton",
    ),
}


def find_runtime(name: str) -> Runtime:
    """InputError for a name that is no runtime's."""
    if name not in RUNTIMES:
        raise InputError(f"unknown runtime '{name}'; it is one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]
