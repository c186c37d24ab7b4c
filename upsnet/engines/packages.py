"""The package that an engine needs: whether it is here, and of a version that loads the engine."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version

from upsnet import DISTRIBUTION
from upsnet.engines.findings import Finding, failed, fine, unknown
from upsnet.engines.kinds import Kind
from upsnet.engines.manifest import Backend, EngineManifest
from upsnet.errors import InputError
from upsnet.tensorrt.api import cuda_of, open_api

TITLES: dict[Backend, str] = {
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "torch-tensorrt": "Torch-TensorRT",
}
PARTS = 3  # of a version that must be equal: TensorRT-RTX compares these (measured with 1.7), and so does TensorRT
USUAL_CUDA = "13"
AGAIN = "build the engine again with `make engine`"
LEAST_ONNXRUNTIME = (1, 23)


def check_package(backend: Backend, kind: Kind, manifest: EngineManifest | None) -> Finding:
    built = kind.version or (manifest.builder if manifest else "")
    if backend == "onnxruntime":
        return _onnxruntime(built)
    if backend == "torch-tensorrt":
        return _torch_tensorrt(built)
    try:
        here = open_api(backend).version
    except InputError as error:
        problem, _, cure = str(error).rpartition(": ")
        cure = install(backend, built, manifest) if built else cure
        return failed("package", "package missing", f"{problem}, and {needs(backend, built)}", cure)
    found = compare(backend, built, here, bool(manifest and manifest.version_compatible))
    cure = f"{AGAIN}, or {install(backend, built, manifest)}"
    return found.model_copy(update={"cure": cure}) if found.status == "failed" else found


def install(backend: Backend, built: str, manifest: EngineManifest | None) -> str:
    """The command that installs the version that built an engine."""
    if backend == "tensorrt":
        return f"`pip install 'tensorrt=={built}'`"
    cuda = (manifest.built_with.get("cuda", "") if manifest else "") or USUAL_CUDA
    packages = (f"tensorrt-rtx-cu{cuda.partition('.')[0]}-{part}=={built}" for part in ("libs", "bindings"))
    return f"`pip install {' '.join(packages)}`"


def cuda_for(backend: Backend, manifest: EngineManifest | None) -> int | None:
    """The major version of CUDA that the package here was made for, else the one that the engine was built with; None
    where nobody says it."""
    here = cuda_of(backend) if backend in ("tensorrt", "tensorrt-rtx") else ""
    said = here or (manifest.built_with.get("cuda", "") if manifest else "").partition(".")[0]
    return int(said) if said.isdecimal() else None


def compare(backend: Backend, built: str, here: str, forward: bool) -> Finding:
    """forward: the engine is version compatible, so that a newer package loads it, too."""
    title = TITLES[backend]
    if not built:
        return unknown("package", f"{title} {here} is here; which version built it is nowhere said")
    theirs, ours = numbers(built)[:PARTS], numbers(here)[:PARTS]
    if theirs == ours or (forward and theirs < ours):
        return fine(
            "package", f"{title} {here}; it was built by {built}{', and is version compatible' if forward else ''}"
        )
    only = "that and newer ones" if forward else "that version alone"
    text = f"it was built by {title} {built}, which {only} can load, and here is {here}"
    return failed("package", "package version", text, AGAIN)


def needs(backend: Backend, built: str) -> str:
    return f"the engine needs {TITLES[backend]} {built}".strip()


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version: 10, 13, 3, 9 of "10.13.3.9" or of "10.13.3.9+cu13"."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))


def _onnxruntime(built: str) -> Finding:
    name = next((each for each in ("onnxruntime", "onnxruntime-gpu") if _version(each)), None)
    if importlib.util.find_spec("onnxruntime") is None:
        cure = f"pip install '{DISTRIBUTION}[onnxruntime]'"
        return failed("package", "package missing", "the package onnxruntime is not installed", cure)
    here = _version(name) if name else ""
    if here and numbers(here) < LEAST_ONNXRUNTIME:
        least = ".".join(map(str, LEAST_ONNXRUNTIME))
        return failed(
            "package", "package version", f"ONNX Runtime {here} is too old", f"pip install 'onnxruntime>={least}'"
        )
    return fine("package", f"ONNX Runtime {here}" + (f"; it was built with {built}" if built not in ("", here) else ""))


def _torch_tensorrt(built: str) -> Finding:
    if importlib.util.find_spec("torch_tensorrt") is None:
        cure = f"pip install 'torch-tensorrt=={built}'" if built else f"pip install '{DISTRIBUTION}[gpu]'"
        text = f"the package torch_tensorrt is not installed, and {needs('torch-tensorrt', built)}"
        return failed("package", "package missing", text, cure)
    here = _version("torch-tensorrt") or _version("torch_tensorrt-rtx")
    if here and built and numbers(here)[:2] != numbers(built)[:2]:
        text = f"it was built by Torch-TensorRT {built}, and here is {here}"
        return failed("package", "package version", text, f"{AGAIN}, or `pip install 'torch-tensorrt=={built}'`")
    return fine("package", f"Torch-TensorRT {here}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
