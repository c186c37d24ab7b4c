"""Building, finding and calling the operators' compiled libraries: the PyTorch binding's way to the kernels.

Three libraries hold the same operators: `cpu` (the CPU fronts), `cuda` (the launchers) and `emulated` (the launchers'
very text, run on the CPU: tests only). Each is compiled on first use by CMake into build/operators/ and found there
afterwards; its folder's name says what it was made from. UPSNET_OPERATORS=FOLDER uses the libraries that
`make plugins` left in FOLDER instead. Where a library cannot be had, the reference serves, and a warning says so once.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = Path(__file__).parent
BUILD = SOURCES.parent / "build" / "operators"
FLOAT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NCHW, NHWC = 0, 1


class BuildError(RuntimeError):
    """A library that cannot be compiled or loaded here; the text says why."""


def layout_of(tensor: torch.Tensor) -> int | None:
    """NCHW or NHWC when the tensor [B, C, H, W] is dense in that order, else None."""
    if tensor.is_contiguous():
        return NCHW
    return NHWC if tensor.is_contiguous(memory_format=torch.channels_last) else None


def compiled(device: torch.device) -> Library | None:
    """The library that runs operators on tensors of this device; None (after one warning) where the reference must."""
    if device.type not in ("cpu", "cuda"):
        return None
    name = _emulated if _emulated and device.type == "cpu" else device.type
    return _load_or_warn(name, gpu_architecture(device) if device.type == "cuda" else "")


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Inside, operators on CPU tensors run the CUDA kernels' text on the CPU (slow; for tests)."""
    global _emulated
    before, _emulated = _emulated, "emulated"
    try:
        yield
    finally:
        _emulated = before


_emulated = ""


class Library:
    """One compiled library. Rooms call it with their params struct (a ctypes.Structure, as `launch.h` lays it out)."""

    def __init__(self, name: str, path: Path) -> None:
        """BuildError when the file cannot be loaded."""
        self.name, self.path = name, path
        try:
            self._functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"{path}: {error}") from error

    def run(self, room: str, params: ctypes.Structure, device: torch.device) -> None:
        """Queue (cuda: on the current stream) or run (cpu, emulated) one operator. RuntimeError when it cannot run."""
        if self._function(room, "params_size", ctypes.c_size_t)() != ctypes.sizeof(params):
            raise RuntimeError(f"{self.path} was built from another version of {room}/launch.h; run `make clean`")
        reference = ctypes.byref(params)
        if self.name == "cpu":
            status = self._function(room, "cpu", ctypes.c_int)(reference, ctypes.c_int(torch.get_num_threads()))
        else:
            size = self._function(room, "workspace_size", ctypes.c_size_t)(reference)
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                workspace = torch.empty(size, dtype=torch.uint8, device=device)
                stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
                launch = self._function(room, "launch", ctypes.c_int)
                status = launch(reference, ctypes.c_void_p(workspace.data_ptr()), ctypes.c_void_p(stream))
        if status != 0:
            raise RuntimeError(f"{room}: the kernel was not launched, CUDA error {status}")

    def _function(self, room: str, what: str, result: type) -> ctypes._NamedFuncPointer:
        function = self._functions[f"upsnet_{room}_{what}"]
        function.restype = result
        return function


@cache
def _load_or_warn(name: str, architecture: str) -> Library | None:
    try:
        return load(name, architecture)
    except BuildError as error:
        warnings.warn(
            f"no compiled operators for {name}, the slower PyTorch reference serves instead: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


_lock = threading.Lock()


def load(name: str, architecture: str = "") -> Library:
    """Library `name` (cpu, cuda, emulated), compiled first if need be. BuildError when that fails.

    architecture: of the GPU, as "90"; for cuda alone.
    """
    given = os.environ.get("UPSNET_OPERATORS")
    if given and name != "emulated":
        path = Path(given) / f"libupsnet_{name}.so"
        if not path.is_file():
            raise BuildError(f"UPSNET_OPERATORS={given} holds no {path.name}; run `make plugins`, or unset it")
        return Library(name, path)
    with _lock:
        return Library(name, _build(name, architecture))


def _build(name: str, architecture: str) -> Path:
    """The compiled file of one target, in a folder of BUILD named by everything that it depends on."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise BuildError("no C++ compiler was found; install g++")
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BuildError("cmake was not found; `pip install cmake`")
    sanitize = os.environ.get("UPSNET_SANITIZE", "") if name != "cuda" else ""
    made_from = hashlib.sha256(_sources())
    for part in (name, architecture, sanitize, _version(compiler), _cpu_features() if name == "cpu" else ""):
        made_from.update(part.encode() + b"\0")
    folder = BUILD / f"{name}{architecture}-{made_from.hexdigest()[:16]}"
    library = folder / f"libupsnet_{name}.so"
    if library.is_file():
        return library
    try:
        BUILD.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{BUILD} cannot be made: {error}") from error
    with FileLock(BUILD / f"{name}.lock"):  # several ranks start at once
        if not library.is_file():
            _compile(
                cmake, name, [f"-DUPSNET_SANITIZE={sanitize}", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"], folder
            )
    return library


def _compile(cmake: str, name: str, options: list[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=BUILD) as temporary:
        if name != "cuda":
            options = [options[0], "-DCMAKE_CUDA_COMPILER=NOTFOUND"]
        jobs = str(os.cpu_count() or 1)
        for command in (
            [cmake, "-S", str(SOURCES), "-B", temporary, *options],
            [cmake, "--build", temporary, "--target", f"upsnet_{name}", "--parallel", jobs],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                log = BUILD / f"{name}.log"
                log.write_text(done.stdout + done.stderr)
                error = next((line for line in log.read_text().splitlines() if "rror" in line), "no error line")
                raise BuildError(f"compiling it failed: {error.strip()} (whole log: {log})")
        built = Path(temporary) / f"libupsnet_{name}.so"
        folder.mkdir(exist_ok=True)
        built.replace(folder / built.name)


def _sources() -> bytes:
    files = sorted(
        p for p in SOURCES.rglob("*") if p.suffix in {".h", ".cuh", ".cu", ".cpp"} or p.name == "CMakeLists.txt"
    )
    return b"\0".join(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() for path in files)


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def _cpu_features() -> str:
    """-march=native compiles for these."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def gpu_architecture(device: torch.device) -> str:
    """The GPU's compute capability as CMake names it: "90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"
