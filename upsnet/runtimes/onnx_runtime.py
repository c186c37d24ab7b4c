"""The ONNX file in process, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from pydantic import ValidationError

from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS
from upsnet.device import DRIVER_LIBRARY, Device, parse_device, warn_of_unused_gpu
from upsnet.engines.check import check_engine
from upsnet.engines.manifest import engine_manifest_path
from upsnet.errors import InputError, one_line
from upsnet.files import check_utf8
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import NONE, Kernels, find_kernels, has_float8, has_operators, wanted_kernels
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction
from upsnet.runtimes.weights import start_session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
OF_TENSORRT = ("bfloat16", "float8")  # types that a CPU's kernels, or ONNX Runtime's optimisation, do not have
Provider = tuple[str, dict[str, str]]  # its name and its options
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
    """Runs an exported model. The manifest comes out of the ONNX file itself; where an engine's manifest lies beside it
    (model.onnx.json), the file and its libraries are held against that.

    device: see upsnet/device.py. kernels: as `open_session` takes it; `.kernels` is what it came to.
    """

    name = "onnxruntime"

    def __init__(
        self, model: Path, threads: int | None = None, device: str = "cpu", kernels: str | None = None
    ) -> None:
        self.engine_path = Path(model) if engine_manifest_path(Path(model)).is_file() else None
        if self.engine_path is not None:
            check_engine(self.engine_path, parse_device(device).number)
        self.session, used = open_with_kernels(Path(model), threads, device, kernels)
        self.kernels = str(used)
        on_gpu = self.session.get_providers()[0] == CUDA
        self.device_name = f"cuda:{parse_device(device).number}" if on_gpu else "cpu"
        self.manifest = manifest_in(self.session, model)

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        return RawPrediction(*self.session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True))))

    def close(self) -> None:
        del self.session


def manifest_in(session: ort.InferenceSession, model: Path) -> Manifest:
    """What the file holds. InputError where it is no model of this project, or none of this version."""
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        names = [[each.name for each in of()] for of in (session.get_inputs, session.get_outputs)]
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
        return Manifest.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise InputError(f"{model}: its manifest is damaged ({one_line(error)}); export it again") from None


def open_session(
    model: Path, threads: int | None = None, device: str = "cpu", kernels: str | None = None
) -> ort.InferenceSession:
    """An ONNX Runtime session, with the compiled kernels of our operators where they can be had.

    kernels: "auto", "off" (the function bodies in the file), or None: as UPSNET_KERNELS says.
    InputError when the file is missing, truncated or not a valid graph, and for a device that cannot be had.
    """
    return open_with_kernels(model, threads, device, kernels)[0]


def open_with_kernels(
    model: Path, threads: int | None = None, device: str = "cpu", kernels: str | None = None
) -> tuple[ort.InferenceSession, Kernels]:
    """As `open_session`, and the kernels that it runs our operators with. Where these are the bodies though nobody
    chose them, a warning says why, once."""
    wanted, kernels = parse_device(device), wanted_kernels(kernels)
    if not model.is_file():
        raise InputError(f"{model}: no such model; export it with `make onnx`")
    check_utf8(model, "ONNX Runtime")
    ort.disable_telemetry_events()
    try:
        return _start(model, threads, wanted, kernels)
    except LOAD_ERRORS as error:
        cure = "export it again with `make onnx`"
        if any(name in str(error) for name in OF_TENSORRT):
            cure = "the file is TensorRT's: take the other one of its export, model.onnx, or an engine (`make engine`)"
        elif isinstance(error, state.NotImplemented):  # as DeformConv in 1.23
            cure = "take a newer ONNX Runtime, or the compiled kernels (`upsnet doctor` says which there are)"
        raise InputError(f"{model}: ONNX Runtime cannot load it ({first_reason(error)}); {cure}") from None


def session_options(
    threads: int | None = None, library: Path | None = None, model: Path | None = None
) -> ort.SessionOptions:
    """What every session is opened with.

    library: of the compiled kernels (`find_kernels`), to be registered in it. model: the file that is opened; with
    weights of float8 it is run as it is, slowly: ONNX Runtime's optimisation makes an invalid or a wrong graph of it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it plans the memory of each shape anew: 1.6 times the peak, and no faster
    if threads is not None:
        options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    if model is not None and has_float8(model):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _start(model: Path, threads: int | None, device: Device, kernels: str) -> tuple[ort.InferenceSession, Kernels]:
    """On the device that is wanted, and on no other."""
    if device.kind == "cpu":
        return start_with_kernels(model, threads, kernels)
    problem = problem_with_cuda()
    if problem is None:
        try:
            session, used = start_with_kernels(model, threads, kernels, gpu=device.number)
            if session.get_providers()[0] == CUDA:
                return session, used
            problem = "its CUDA provider does not load; ONNX Runtime's lines on stderr say why"
        except (*LOAD_ERRORS, RuntimeError) as error:  # RuntimeError: CUDA's own failures
            problem = first_reason(error)
    if device.kind == "cuda":
        raise InputError(f"{model}: ONNX Runtime cannot run it on {device} ({problem}); device cpu needs no GPU")
    session, used = start_with_kernels(model, threads, kernels)
    if CUDA in ort.get_available_providers():
        warn_of_unused_gpu("ONNX Runtime", problem)
    return session, used


def start_with_kernels(
    model: Path, threads: int | None, kernels: str, gpu: int | None = None, ahead: Sequence[Provider] = ()
) -> tuple[ort.InferenceSession, Kernels]:
    """A session on the CPU, or on a GPU; there, providers `ahead` of CUDA take what they can. Raises ONNX Runtime's
    errors."""
    providers: dict[str, Any] = {"providers": [CPU]}
    if gpu is not None:
        # As PyTorch's float32 is here: no TF32. No fallback: ONNX Runtime would print a banner and take the CPU.
        cuda = (CUDA, {"device_id": str(gpu), "use_tf32": "0"})
        providers = {"providers": [*ahead, cuda, CPU], "enable_fallback": 0}
    used = registered(find_kernels(kernels, gpu)) if has_operators(model) else NONE
    used.warn()
    if used.library is not None:
        try:
            return start_session(model, session_options(threads, used.library, model), **providers), used
        except LOAD_ERRORS as error:  # of the library, or the model's own, which it then has without it, too
            used = Kernels(None, f"{used.library} does not run this model: {first_reason(error)}")
    session = start_session(model, session_options(threads, model=model), **providers)
    used.warn()
    return session, used


def registered(kernels: Kernels) -> Kernels:
    """The same, or, where ONNX Runtime does not take the library, none, and why."""
    try:
        session_options(library=kernels.library)
    except LOAD_ERRORS as error:
        return Kernels(None, f"ONNX Runtime {ort.__version__} does not take {kernels.library}: {first_reason(error)}")
    return kernels


def problem_with_cuda() -> str | None:
    """Why ONNX Runtime cannot have CUDA here; None where it has to be tried."""
    if CUDA not in ort.get_available_providers():
        return "the package onnxruntime has no CUDA; install onnxruntime-gpu in its place"
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    with contextlib.redirect_stdout(io.StringIO()):  # its list of what it does not find: much is not needed
        ort.preload_dlls()  # CUDA and cuDNN from the packages that PyTorch brings, else from the system
    return None


def first_reason(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())[:300]
