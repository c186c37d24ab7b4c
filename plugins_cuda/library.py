"""Building, finding and calling the operators' compiled libraries: the PyTorch binding's way to the kernels.

Three libraries hold the same operators: `cpu` (the CPU fronts), `cuda` (the launchers) and `emulated` (the launchers'
very text, run on the CPU: tests only). Each is compiled on first use by CMake into build/operators/ and found there
afterwards; its folder's name says what it was made from. Where a library cannot be had, the reference serves, and a
warning says so once. Environment:

UPSNET_OPERATORS=FOLDER    takes the libraries that `make plugins` left in FOLDER; nothing is compiled
UPSNET_CPU_LEVEL=v2, v3 or v4    the highest level of x86-64 that `cpu` may use (docs/cpus.md)
UPSNET_SANITIZE=address,undefined    compiles `cpu` and `emulated` with these sanitizers (`make sanitize`)
CXX, CUDACXX    the compilers
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple  # Any: what a function of a library returns

import torch
from filelock import FileLock

from upsnet.errors import InputError

SOURCES = Path(__file__).parent
BUILD = SOURCES.parent / "build" / "operators"
REASONS = {  # of a cudaError_t that the libraries return themselves
    1: "sizes or numbers that it does not support",
    2: "not enough memory",
    701: "this GPU has too little shared memory",
    716: "a tensor is not aligned to its elements",
}
CPU_LEVELS = ("v2", "v3", "v4")  # x86-64-v2: SSE4.2, v3: AVX2, v4: AVX-512


class BuildError(RuntimeError):
    """A library that cannot be compiled or loaded here; the text says why."""


def compiled(device: torch.device) -> Library | None:
    """The library that runs operators on tensors of this device; None (after one warning) where the reference must."""
    if device.type not in ("cpu", "cuda") or _forced == "reference":
        return None
    name = _forced if _forced and device.type == "cpu" else device.type
    with _lock:
        return _load_or_warn(name, gpu_architecture(device) if device.type == "cuda" else "")


def emulation(name: str = "emulated") -> AbstractContextManager[None]:
    """Inside, operators on CPU tensors run the CUDA kernels' text on the CPU (slow; for tests).

    name: `emulated_sm_75` for what a GPU before sm_80 runs.
    """
    return _forcing(name)


def definitions() -> AbstractContextManager[None]:
    """Inside, operators run their reference: a baseline for benchmarks."""
    return _forcing("reference")


@contextlib.contextmanager
def _forcing(name: str) -> Iterator[None]:
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def gpu_architecture(device: torch.device) -> str:
    """The GPU's compute capability as CMake names it: "90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


_forced = ""  # "emulated", "emulated_sm_75" or "reference": what CPU tensors (reference: all) run; else as the device
_lock = threading.RLock()  # threads of one process take turns to load; processes, by a file's lock, to compile


class _Operator(NamedTuple):
    """One room's functions in a library."""

    start: Callable[..., int]  # upsnet_<room>_cpu, or upsnet_<room>_launch
    workspace_size: Callable[..., int] | None  # None: a CPU front


class Library:
    """One compiled library. Rooms call it with their params struct (a ctypes.Structure, as `launch.h` lays it out)."""

    def __init__(self, name: str, path: Path) -> None:
        """BuildError when the file cannot be loaded."""
        self.name, self.path = name, path
        self._operators: dict[tuple[str, type[ctypes.Structure]], _Operator] = {}
        try:
            self._functions = ctypes.CDLL(str(path))  # its calls let other Python threads run
        except OSError as error:
            raise BuildError(f"{path} cannot be loaded (delete it to have it made anew): {error}") from error

    def cpu_level(self) -> str:
        """The level of x86-64 that `cpu` runs at in this process: "v3"."""
        return f"v{self._functions.upsnet_cpu_level()}"

    def run(
        self, room: str, params: ctypes.Structure, device: torch.device, workspace: torch.Tensor | None = None
    ) -> None:
        """Queue (cuda: on the current stream) or run (cpu, emulated) one operator. RuntimeError when it cannot run.

        workspace: uint8, at least workspace_size of it, on the device; None: memory of PyTorch's.
        """
        operator, reference, on_gpu = self._operator(room, params), ctypes.byref(params), device.type == "cuda"
        if operator.workspace_size is None:
            status = operator.start(reference, torch.get_num_threads())
        else:
            with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
                needed = operator.workspace_size(reference)
                if workspace is None:
                    # Freed when this returns, perhaps before the kernels ran: PyTorch's allocator hands it only to
                    # later work of the same stream. The same holds for the tensors that a binding converts.
                    workspace = torch.empty(needed, dtype=torch.uint8, device=device)
                if workspace.numel() < needed:
                    raise RuntimeError(f"{room}: it needs a workspace of {needed} bytes, got {workspace.numel()}")
                stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else None
                status = operator.start(reference, workspace.data_ptr(), workspace.numel(), stream)
        if status != 0:
            kind = "error" if operator.workspace_size is None else "CUDA error"
            reason = f"{kind} {status}" + (f" ({REASONS[status]})" if status in REASONS else "")
            raise RuntimeError(f"{room}: the {self.name} library could not run it, {reason}")

    def workspace_size(self, room: str, params: ctypes.Structure) -> int:
        """Bytes of device memory that one launch works in; a CPU front takes none from its caller."""
        operator = self._operator(room, params)
        return 0 if operator.workspace_size is None else operator.workspace_size(ctypes.byref(params))

    def _operator(self, room: str, params: ctypes.Structure) -> _Operator:
        return self._operators.get((room, type(params))) or self._find(room, type(params))

    def _find(self, room: str, params: type[ctypes.Structure]) -> _Operator:
        """Complete before others see it, so that threads share no half-typed function."""

        def function(what: str, result: type, *arguments: type) -> Callable[..., Any]:
            found = self._functions[f"upsnet_{room}_{what}"]
            found.restype, found.argtypes = result, arguments
            return found

        pointer = ctypes.c_void_p
        try:
            if function("params_layout", ctypes.c_char_p)().decode() != layout_of(params):
                raise RuntimeError(f"{self.path} was made from another version of {room}/launch.h; make it anew")
            if self.name == "cpu":
                operator = _Operator(function("cpu", ctypes.c_int, pointer, ctypes.c_int), None)
            else:
                operator = _Operator(
                    function("launch", ctypes.c_int, pointer, pointer, ctypes.c_size_t, pointer),
                    function("workspace_size", ctypes.c_size_t, pointer),
                )
        except AttributeError as error:
            raise RuntimeError(f"{self.path} holds no {room}; make it anew") from error
        self._operators[room, params] = operator
        return operator


def layout_of(params: type[ctypes.Structure]) -> str:
    """Name, offset and size of every member, as the library states them (common/exports.h)."""
    members = ((field[0], getattr(params, field[0])) for field in params._fields_)
    return "".join(f"{name}:{member.offset}:{member.size} " for name, member in members)


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


def load(name: str, architecture: str = "") -> Library:
    """Library `name` (cpu, cuda, emulated, emulated_sm_75), compiled first if need be. BuildError when that fails.

    architecture: of the GPU, as "90"; for cuda alone. InputError: an unknown UPSNET_CPU_LEVEL.
    """
    level = os.environ.get("UPSNET_CPU_LEVEL", CPU_LEVELS[-1])
    if level not in CPU_LEVELS:
        raise InputError(f"UPSNET_CPU_LEVEL={level}: give {', '.join(CPU_LEVELS)}, or unset it")
    given = os.environ.get("UPSNET_OPERATORS")
    if given and name in ("cpu", "cuda"):
        path = Path(given) / f"libupsnet_{name}.so"
        if not path.is_file():
            raise BuildError(f"UPSNET_OPERATORS={given} holds no {path.name}; run `make plugins`, or unset it")
        return Library(name, path)
    with _lock:
        return Library(name, _build(name, architecture))


def _build(name: str, architecture: str) -> Path:
    """The compiled file of one target, in a folder of BUILD named by everything that it depends on."""
    compiler = _compiler("CXX", ["c++", "g++"], "no C++ compiler was found; install g++, or set CXX")
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if cmake is None:
        raise BuildError("cmake was not found; `pip install cmake`")
    environment = {**os.environ, "CXX": compiler}
    made_from = [name, platform.machine(), architecture, _version(compiler)]
    options = [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    if name == "cuda":
        toolkit = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"]
        environment["CUDACXX"] = _compiler(
            "CUDACXX", ["nvcc", *toolkit], "no nvcc was found; install the CUDA toolkit (12.8 or newer), or set CUDACXX"
        )
        made_from.append(_version(environment["CUDACXX"]))
    else:
        sanitizers = _sanitizers()
        environment.pop("LD_PRELOAD", None)  # of the sanitizers: theirs is this process, not the compiler
        options = ["-DCMAKE_CUDA_COMPILER=NOTFOUND", f"-DUPSNET_SANITIZE={sanitizers}"]
        made_from.append(sanitizers)
    digest = hashlib.sha256("\0".join(made_from).encode() + _sources()).hexdigest()[:16]
    library = BUILD / f"{name}{architecture}-{digest}" / f"libupsnet_{name}.so"
    if not library.is_file():
        try:
            BUILD.mkdir(parents=True, exist_ok=True)
            with FileLock(BUILD / f"{name}.lock"):  # several ranks start at once
                if not library.is_file():
                    _compile(cmake, name, options, environment, library)
        except OSError as error:
            raise BuildError(f"{BUILD} cannot be written to: {error}") from error
    return library


def _compile(cmake: str, name: str, options: list[str], environment: dict[str, str], library: Path) -> None:
    print(f"compiling the operators for {name} (once) ...", file=sys.stderr, flush=True)
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=BUILD) as temporary:
        for command in (
            [cmake, "-S", str(SOURCES), "-B", temporary, f"-DPython3_EXECUTABLE={sys.executable}", *options],
            [cmake, "--build", temporary, "--target", f"upsnet_{name}", "--parallel", jobs],
        ):
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
            if done.returncode != 0:
                log = BUILD / f"{name}.log"
                log.write_text(done.stdout + done.stderr)
                raise BuildError(f"compiling it failed: {_first_error(done.stdout + done.stderr)} (whole log: {log})")
        library.parent.mkdir(exist_ok=True)
        (Path(temporary) / library.name).replace(library)


def _first_error(log: str) -> str:
    """The line that names the first error, and the next one: CMake gives the reason there."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(lines) if "error" in line.lower()), None)
    return "no error line" if first is None else " ".join(lines[first : first + 2])


def _compiler(variable: str, names: list[str], missing: str) -> str:
    """The command of a compiler: the environment variable's, else the first of the names that is there."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise BuildError(missing)
    return found


@cache
def _version(compiler: str) -> str:
    command = [*shlex.split(compiler), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the compiler {compiler!r} does not run: {error}") from error


def _sanitizers() -> str:
    """UPSNET_SANITIZE. An address sanitizer that is not there from the start ends the process: refused in time."""
    wanted = os.environ.get("UPSNET_SANITIZE", "")
    if "address" in wanted and not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise BuildError(f"UPSNET_SANITIZE={wanted} needs libasan from the start (LD_PRELOAD); run `make sanitize`")
    return wanted


def _sources() -> bytes:
    """Everything that the three libraries are made from, with its names."""
    kinds = {".h", ".cuh", ".cu", ".cpp"}
    names = {"CMakeLists.txt", "schema.py", "generate.py"}
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in kinds or path.name in names)
    files = [path for path in files if path.name != "plugin.cpp"]
    return b"\0".join(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() for path in files)
