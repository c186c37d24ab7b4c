"""Compiling the operators' libraries with CMake, each once for everything that it is made from.

A library lies below build/operators/ of the checkout; where there is none or it cannot be written to, in the user's
cache: $XDG_CACHE_HOME/upsnet-trt/operators, else ~/.cache/upsnet-trt/operators.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

from upsnet.errors import InputError
from upsnet.files import WriteError, write_text
from upsnet.kernels.loading import BuildError as BuildError
from upsnet.kernels.loading import check_owners
from upsnet.kernels.tools import find_tool

CHECKOUT = Path(__file__).resolve().parents[2]
CARRIED = Path(__file__).resolve().parent / "sources"  # of a wheel
SOURCES = CARRIED if CARRIED.is_dir() else CHECKOUT / "plugins_cuda"
BUILD = None if CARRIED.is_dir() else CHECKOUT / "build" / "operators"
CPU_LEVELS = ("v2", "v3", "v4")  # x86-64-v2: SSE4.2, v3: AVX2, v4: AVX-512
LONGEST_REASON = 200  # characters of a compiler's error
# What compilers and linkers say where not the sources are wrong, but a disk is full, or memory went out.
OF_THE_MOMENT = re.compile(
    "No space left|quota exceeded|File too large|size limit|out of memory|memory exhausted|Cannot allocate|Killed"
    "|signal 9|terminated program"
)
NO_ERROR = "no error line"
MADE = ("cpu", "cuda", "onnxruntime", "onnxruntime_cuda")  # by `make plugins` too

# What CMake and nvcc take from the environment besides the compilers.
FLAGS = ("CXXFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "LDFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")


def find_library(name: str, architecture: str = "") -> Path:
    """libupsnet_<name>.so: of the folder that UPSNET_OPERATORS names, which `make plugins` left; else compiled on first
    use. BuildError where neither can be had, and where others can write to it; InputError: an unknown UPSNET_CPU_LEVEL.

    architecture: the compute capability of the GPU, as "90"; for libraries with CUDA launchers alone.
    """
    level = os.environ.get("UPSNET_CPU_LEVEL", CPU_LEVELS[-1])
    if level not in CPU_LEVELS:
        raise InputError(f"UPSNET_CPU_LEVEL={level}: give {', '.join(CPU_LEVELS)}, or unset it")
    given = os.environ.get("UPSNET_OPERATORS")
    if not given or name not in MADE:
        return build(name, architecture)
    path = Path(os.path.realpath(given)) / f"libupsnet_{name}.so"  # a name without a folder is looked up elsewhere
    check_owners(path, path.parent)
    if not path.is_file():
        raise BuildError(f"UPSNET_OPERATORS={given} holds no {path.name}; run `make plugins`, or unset it")
    return path


def build(name: str, architecture: str) -> Path:
    """The compiled file of one target, in a folder named by everything that it depends on; where the compiler has gone,
    the newest of the same sources and flags that it left."""
    if sys.platform == "win32":
        raise BuildError("the operators are not compiled on Windows")
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise BuildError(f"the operators' sources are not installed: {SOURCES}")
    on_gpu = name.endswith("cuda")
    sanitizers = "" if on_gpu else _sanitizers()
    made_from = [name, platform.machine(), architecture, sanitizers]
    made_from += [f"{flags}={os.environ.get(flags, '')}" for flags in FLAGS]
    sources = hashlib.sha256("\0".join(made_from).encode() + _sources(name)).hexdigest()[:16]
    start = f"{name}{architecture}-{sources}"
    try:
        compilers = _compilers(on_gpu)
        versions = [_version(each) for each in compilers.values()]
    except BuildError:
        made = _made_before(start, name)
        if made is None:
            raise
        return made
    environment = {**os.environ, **compilers}
    options = [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    if not on_gpu:
        environment.pop("LD_PRELOAD", None)  # of the sanitizers: theirs is this process, not the compiler
        options = ["-DCMAKE_CUDA_COMPILER=NOTFOUND", f"-DUPSNET_SANITIZE={sanitizers}"]
    digest = hashlib.sha256("\0".join(versions).encode()).hexdigest()[:8]
    place = Path(start + digest, f"libupsnet_{name}.so")
    if BUILD is not None and os.path.isfile(BUILD / place):  # False for what may not be looked at, too
        check_owners(BUILD / place, BUILD.parent)
        return BUILD / place
    folder = _writable_folder()
    check_owners(folder / place, folder.parent)
    try:
        _compile_once(name, options, environment, folder / place)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to: {error}") from error
    except WriteError as error:
        raise BuildError(str(error)) from error
    return folder / place


def _made_before(start: str, name: str) -> Path | None:
    """The newest library in a folder whose name starts like this."""
    folders = {BUILD} if BUILD is not None else set()
    with contextlib.suppress(BuildError):  # there is no cache
        folders.add(_writable_folder())
    found = [path for folder in folders for path in folder.glob(f"{start}*/libupsnet_{name}.so")]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        check_owners(newest, newest.parents[2])
    return newest


def _writable_folder() -> Path:
    """BUILD, or the user's cache: code is loaded from there, so nobody else may write to it."""
    if BUILD is not None:
        with contextlib.suppress(OSError):  # as os.access says in other words
            for made in (BUILD.parent, BUILD):
                made.mkdir(mode=0o775, exist_ok=True)  # of others alone to read, whatever the umask
            if os.access(BUILD, os.W_OK | os.X_OK):
                return BUILD
    above = os.environ.get("XDG_CACHE_HOME", "")
    try:
        own = (Path(above) if os.path.isabs(above) else Path.home() / ".cache") / "upsnet-trt"
        folder = own / "operators"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = [path.stat() for path in (own, folder)]
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        why = f"{BUILD} cannot be written to, and " if BUILD else ""
        raise BuildError(f"{why}there is no cache ({error}); set XDG_CACHE_HOME") from error
    if any(each.st_uid != os.geteuid() or each.st_mode & 0o022 for each in found):
        raise BuildError(f"{folder}: others can write there, so no code is loaded from it; `chmod go-w {own} {folder}`")
    return folder


def _compile_once(name: str, options: list[str], environment: dict[str, str], library: Path) -> None:
    """Of several processes that want it at once, as the ranks of a run do, one compiles; or fails, for all of them."""
    log = library.parent.with_suffix(".log")
    with _alone(library.parents[1] / f"{name}.lock"):
        if library.is_file():
            return
        if log.is_file() and _lasts(log.read_text()):  # these sources failed with this compiler
            raise BuildError(_failure(log))
        _compile(name, options, environment, library, log)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Of all threads and processes, one at a time is inside. The lock ends with the process, however that ends."""
    import fcntl  # not on Windows

    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _compile(name: str, options: list[str], environment: dict[str, str], library: Path, log: Path) -> None:
    cmake = find_tool("cmake")
    if cmake is None:
        raise BuildError("cmake was not found; `pip install cmake`")
    folder = library.parents[1]
    for path in (SOURCES, folder):
        if ";" in str(path):
            raise BuildError(f"CMake compiles nothing below a folder with ';' in its name, rename it: {path}")
    options = [*options, *_generator(), f"-DPython3_EXECUTABLE={sys.executable}"]
    where = "once" if folder == BUILD else f"once, into {folder}"
    if BUILD is not None and folder != BUILD:
        where += f", as {BUILD} cannot be written to"
    print(
        f"compiling the operators for {name} ({where}), a minute or more of one core ...", file=sys.stderr, flush=True
    )
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    partial = f".{name}-partial-"
    for left in folder.glob(f"{partial}*"):  # by a process that was killed: whoever is here is alone
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=partial, dir=folder) as temporary:
        for command in (
            [cmake, "-S", str(SOURCES), "-B", temporary, *options],
            [cmake, "--build", temporary, "--target", f"upsnet_{name}", "--parallel", jobs],
        ):
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
            if done.returncode != 0:
                write_text(log, done.stderr + done.stdout)
                raise BuildError(_failure(log))
        log.unlink(missing_ok=True)
        made = Path(temporary) / library.name
        made.chmod(made.stat().st_mode & ~stat.S_IWOTH)
        library.parent.mkdir(mode=0o775, exist_ok=True)
        made.replace(library)


def _generator() -> list[str]:
    """CMake's options for the program that it leaves the work to."""
    if os.environ.get("CMAKE_GENERATOR") or find_tool("make"):
        return []
    ninja = find_tool("ninja")
    if ninja is None:
        raise BuildError("neither make nor ninja was found; install make, or `pip install ninja`")
    return ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def _failure(log: Path) -> str:
    text = log.read_text()
    first = _first_error(text)
    reason = first if len(first) <= LONGEST_REASON else f"{first[:LONGEST_REASON]}..."
    if OF_THE_MOMENT.search(text):
        cure = "free space on the disks or memory, the next use tries again"
    else:
        cure = "delete it to try again" if _lasts(text) else "the next use tries again"
    return f"compiling it failed: {reason} (whole log: {log}; {cure})"


def _lasts(log: str) -> bool:
    """The same sources would fail again: no disk was full and no compiler killed, and an error is named, as it is not
    where the log is cut off."""
    return OF_THE_MOMENT.search(log) is None and _first_error(log) != NO_ERROR


def _first_error(log: str) -> str:
    """The line that names the first error. Of CMake's: its message, in it a compiler's own words."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(lines) if "error" in line.lower()), None)
    if first is None:
        return NO_ERROR
    if not (lines[first].startswith("CMake Error at") and lines[first].endswith(":")):
        return lines[first]
    message = list(takewhile(lambda line: not line.startswith(("Call Stack", "CMake ", "-- ")), lines[first + 1 :]))
    compilers = next((index for index, line in enumerate(message) if "error" in line.lower()), 0)
    return " ".join(message[compilers : compilers + 3])


def _compilers(on_gpu: bool) -> dict[str, str]:
    """The commands, by the environment variables that name them to CMake. BuildError where one is missing."""
    found = {"CXX": _compiler("CXX", ["c++", "g++"], "no C++ compiler was found; install g++, or set CXX")}
    if on_gpu:
        missing = "no nvcc was found; install the CUDA toolkit (12.8 or newer), or set CUDACXX"
        found["CUDACXX"] = _compiler("CUDACXX", ["nvcc"], missing)
    return found


def _compiler(variable: str, names: list[str], missing: str) -> str:
    """The command of a compiler: the environment variable's, else the first of the names that is there."""
    found = os.environ.get(variable) or find_tool(*names)
    if not found:
        raise BuildError(missing)
    return found


@cache
def _version(compiler: str) -> str:
    try:
        command = [*shlex.split(compiler), "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, ValueError, subprocess.CalledProcessError) as error:  # ValueError: a quote without an end
        raise BuildError(f"the compiler {compiler!r} does not run: {error}") from error


def _sanitizers() -> str:
    """UPSNET_SANITIZE. An address sanitizer that is not there from the start ends the process: refused in time."""
    wanted = os.environ.get("UPSNET_SANITIZE", "")
    if "address" in wanted and not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise BuildError(f"UPSNET_SANITIZE={wanted} needs libasan from the start (LD_PRELOAD); run `make sanitize`")
    return wanted


def _sources(name: str) -> bytes:
    """Everything that a library is made from, with its names."""
    kinds = {".h", ".cuh", ".cu", ".cpp"}
    names = {"CMakeLists.txt", "schema.py", "generate.py"}
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in kinds or path.name in names)
    others = {"tensorrt", "plugin.cpp"}
    others |= {"backward", "columns"} if "onnxruntime" in name else {"onnxruntime", "onnxruntime.cpp"}
    files = [path for path in files if not others & set(path.relative_to(SOURCES).parts)]
    return b"\0".join(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() for path in files)
