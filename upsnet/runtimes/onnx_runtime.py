"""The ONNX file in process, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from pydantic import ValidationError

from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS
from upsnet.device import Device, parse_device, warn_of_unused_gpu
from upsnet.errors import InputError, one_line
from upsnet.files import WriteError, check_utf8
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
LOAD_ERRORS = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    UnicodeDecodeError,  # a name that is damaged
)


class OnnxRuntimePredictor:
    """Runs an exported model. The manifest comes out of the ONNX file itself. device: see upsnet/device.py."""

    name = "onnxruntime"

    def __init__(self, model: Path, threads: int | None = None, device: str = "cpu") -> None:
        self.session = open_session(Path(model), threads, device=device)
        on_gpu = self.session.get_providers()[0] == CUDA
        self.device_name = f"cuda:{parse_device(device).number}" if on_gpu else "cpu"
        try:
            metadata = self.session.get_modelmeta().custom_metadata_map
            names = [[each.name for each in of()] for of in (self.session.get_inputs, self.session.get_outputs)]
        except UnicodeDecodeError:
            raise InputError(f"{model}: damaged: a name in it is no text; export it again with `make onnx`") from None
        if METADATA_KEY not in metadata:
            raise InputError(f"{model}: not an upsnet model (no {METADATA_KEY} metadata); export it with `make onnx`")
        if names != [INPUTS, OUTPUTS]:
            raise InputError(
                f"{model}: not a graph of this version ({' '.join(names[0])} -> {' '.join(names[1])}); export it again "
                "with `make onnx`"
            )
        try:
            self.manifest = Manifest.model_validate_json(metadata[METADATA_KEY])
        except ValidationError as error:
            raise InputError(f"{model}: its manifest is damaged ({one_line(error)}); export it again") from None

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        return RawPrediction(*self.session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True))))

    def close(self) -> None:
        del self.session


def open_session(
    model: Path, threads: int | None = None, optimized: Path | None = None, device: str = "cpu"
) -> ort.InferenceSession:
    """An ONNX Runtime session; with `optimized` the optimised graph is written there too.

    InputError when the file is missing, truncated or not a valid graph, and for a device that cannot be had.
    """
    wanted = parse_device(device)
    if not model.is_file():
        raise InputError(f"{model}: no such model; export it with `make onnx`")
    for path in filter(None, (model, optimized)):
        check_utf8(path, "ONNX Runtime")
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        # Extended, not all: the layout optimisations depend on this processor, and are done again at loading.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    try:
        return _start(str(model), options, wanted)
    except LOAD_ERRORS as error:
        reason = _reason(error)
        if optimized is not None and "serialization failed" in reason:  # the system's own word is lost
            raise WriteError(optimized, f"the disk may be full (ONNX Runtime: {reason})") from None
        raise InputError(f"{model}: ONNX Runtime cannot load it ({reason}); export it again with `make onnx`") from None


def _start(model: str, options: ort.SessionOptions, device: Device) -> ort.InferenceSession:
    """On the device that is wanted, and on no other."""
    if device.kind == "cpu":
        return ort.InferenceSession(model, options, providers=[CPU])
    problem = _problem_with_cuda()
    if problem is None:
        # As PyTorch's float32 is here: no TF32. No fallback: ONNX Runtime would print a banner and take the CPU.
        cuda = (CUDA, {"device_id": str(device.number), "use_tf32": "0"})
        try:
            session = ort.InferenceSession(model, options, providers=[cuda, CPU], enable_fallback=0)
            if session.get_providers()[0] == CUDA:
                return session
            problem = "its CUDA provider does not load; ONNX Runtime's lines on stderr say why"
        except (*LOAD_ERRORS, RuntimeError) as error:  # RuntimeError: CUDA's own failures
            problem = _reason(error)
    if device.kind == "cuda":
        raise InputError(f"{model}: ONNX Runtime cannot run it on {device} ({problem}); device cpu needs no GPU")
    session = ort.InferenceSession(model, options, providers=[CPU])
    if CUDA in ort.get_available_providers():
        warn_of_unused_gpu("ONNX Runtime", problem)
    return session


def _problem_with_cuda() -> str | None:
    """Why ONNX Runtime cannot have CUDA here; None where it has to be tried."""
    if CUDA not in ort.get_available_providers():
        return "the package onnxruntime has no CUDA; install onnxruntime-gpu in its place"
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    with contextlib.redirect_stdout(io.StringIO()):  # its list of what it does not find: much is not needed
        ort.preload_dlls()  # CUDA and cuDNN from the packages that PyTorch brings, else from the system
    return None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
