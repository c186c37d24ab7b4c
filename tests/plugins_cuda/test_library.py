"""Building, finding and calling the compiled libraries, with a toy operator and a stand-in for CMake."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import plugins_cuda
from plugins_cuda import building, library
from plugins_cuda.library import BuildError, Library

CPU = torch.device("cpu")
TOY = """
#include <cstddef>
struct Params { int value; int* result; };
extern "C" const char* upsnet_toy_params_layout() { return "value:0:4 result:8:8 "; }
extern "C" int upsnet_toy_cpu(const Params* params, int threads) {
  *params->result = 100 * params->value + threads;
  return params->value < 0 ? 7 : 0;
}
extern "C" size_t upsnet_toy_workspace_size(const Params* params) { return params->value; }
extern "C" int upsnet_toy_launch(const Params* params, unsigned char* workspace, size_t, void* stream) {
  for (int i = 0; i < params->value; ++i) workspace[i] = 1;
  *params->result = stream == nullptr;
  return 0;
}
"""
# Logs its arguments; `--build FOLDER --target upsnet_NAME` leaves the toy library there. WAIT_FOR: a file.
CMAKE = """#!/bin/sh
echo "$@" >> {log}
while [ -n "$WAIT_FOR" ] && [ ! -e "$WAIT_FOR" ]; do sleep 0.05; done
[ -z "$FAIL" ] || {{ echo "kernel.cu:3: error: no such thing"; exit 1; }}
[ "$1" != --build ] || cp {toy} "$2/lib$4.so"
"""


class Params(ctypes.Structure):
    _fields_ = (("value", ctypes.c_int), ("result", ctypes.POINTER(ctypes.c_int)))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.cpp").write_text(TOY)
    command = ["g++", "-shared", "-fPIC", str(folder / "toy.cpp"), "-o", str(folder / "libupsnet_cpu.so")]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment)
    return folder / "libupsnet_cpu.so"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A build folder of its own, and nothing remembered before or after."""
    for name in ("UPSNET_OPERATORS", "UPSNET_SANITIZE", "CXX", "CUDACXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "BUILD", tmp_path / "build")
    for remembered in (library._load_or_warn, building._version):
        remembered.cache_clear()
    yield tmp_path / "build"
    for remembered in (library._load_or_warn, building._version):
        remembered.cache_clear()


@pytest.fixture
def cmake_log(fresh: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-in is the first cmake on PATH; what it was called with."""
    log, script = tmp_path / "cmake.log", tmp_path / "bin" / "cmake"
    script.parent.mkdir()
    script.write_text(CMAKE.format(log=log, toy=toy))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return log


def call(toy_library: Library, value: int) -> int:
    result = ctypes.c_int(-1)
    toy_library.run("toy", Params(value, ctypes.pointer(result)), CPU)
    return result.value


def builds(log: Path) -> int:
    return log.read_text().count("--build") if log.exists() else 0


def test_import_compiles_and_loads_nothing(project_root: Path) -> None:
    code = """
import subprocess, torch, torchvision
def refuse(*arguments, **options): raise AssertionError(arguments)
subprocess.run = subprocess.Popen = refuse
import plugins_cuda, plugins_cuda.library
assert "libupsnet" not in open("/proc/self/maps").read()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project_root)


def test_calls_carry_params_threads_and_workspace(toy: Path) -> None:
    assert call(Library("cpu", toy), 3) == 301  # torch's number of threads: 1 here
    assert call(Library("emulated", toy), 1000) == 1  # no stream; a workspace of 1000 bytes
    assert call(Library("emulated", toy), 0) == 1
    result = ctypes.c_int(-1)
    params = Params(8, ctypes.pointer(result))
    Library("emulated", toy).run("toy", params, CPU, torch.zeros(8, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="toy: it needs a workspace of 8 bytes, got 7"):
        Library("emulated", toy).run("toy", params, CPU, torch.zeros(7, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match=r"toy: the cpu library could not run it, error 7"):
        call(Library("cpu", toy), -1)


def test_other_params_or_operators_are_refused(toy: Path) -> None:
    class Old(ctypes.Structure):
        _fields_ = (("value", ctypes.c_int),)

    class Swapped(ctypes.Structure):
        _fields_ = (("result", ctypes.POINTER(ctypes.c_int)), ("value", ctypes.c_int))

    class Renamed(ctypes.Structure):
        _fields_ = (("size", ctypes.c_int), ("result", ctypes.POINTER(ctypes.c_int)))

    for params in (Old(), Swapped(), Renamed()):
        with pytest.raises(RuntimeError, match=r"another version of toy/launch\.h"):
            Library("cpu", toy).run("toy", params, CPU)
    with pytest.raises(RuntimeError, match=r"libupsnet_cpu\.so holds no nms"):
        Library("cpu", toy).run("nms", Old(1), CPU)


def test_threads_share_a_library(toy: Path) -> None:
    shared = Library("cpu", toy)
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(value for value in range(200) if call(shared, value) // 100 != value)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_compiled_once_and_again_when_a_source_changes(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    (sources / "nms").mkdir(parents=True)
    (sources / "CMakeLists.txt").touch()
    (sources / "nms" / "cpu.cpp").write_text("one")
    monkeypatch.setattr(building, "SOURCES", sources)
    first = library.load("cpu").path
    assert capfd.readouterr().err == "compiling the operators for cpu (once) ...\n"
    assert (library.load("cpu").path, builds(cmake_log), capfd.readouterr().err) == (first, 1, "")
    (sources / "nms" / "plugin.cpp").write_text("TensorRT's alone")
    assert library.load("cpu").path == first
    (sources / "nms" / "cpu.cpp").write_text("two")
    assert library.load("cpu").path != first
    assert builds(cmake_log) == 2
    assert sorted(path.name for path in fresh.iterdir() if path.is_dir()) == sorted(
        path.parent.name for path in fresh.glob("cpu-*/libupsnet_cpu.so")
    ), "temporary folders are gone"


def test_processes_that_start_together_compile_once(cmake_log: Path, fresh: Path, project_root: Path) -> None:
    code = f"""
from pathlib import Path
from plugins_cuda import building, library
building.BUILD = Path({str(fresh)!r})
print(library.load("cpu").path)
"""
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert (len(paths), builds(cmake_log)) == (1, 1)


def test_compiler_flags_and_sanitizers_are_part_of_the_key(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {library.load("cpu").path}
    monkeypatch.setenv("UPSNET_SANITIZE", "undefined")
    paths.add(library.load("cpu").path)
    assert "-DUPSNET_SANITIZE=undefined" in cmake_log.read_text()
    other = fresh.parent / "other"
    other.write_text("#!/bin/sh\necho another compiler 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("CXX", f"{other} -pipe")
    paths.add(library.load("cpu").path)
    assert len(paths) == 3
    others = "CXXFLAGS CUDAFLAGS CUDAHOSTCXX LDFLAGS NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS NVCC_CCBIN"
    for number, flags in enumerate(others.split(), 4):
        monkeypatch.setenv(flags, "-g")
        paths.add(library.load("cpu").path)
        assert len(paths) == number, f"{flags} is part of it"


def test_address_sanitizer_sees_the_end_of_a_tensor(tmp_path: Path, project_root: Path) -> None:
    """What `make sanitize` rests on: PyTorch's memory, written to by a library that is called from Python."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("this process runs under the address sanitizer")
    source, compiled = tmp_path / "toy.cpp", tmp_path / "toy.so"
    source.write_text('extern "C" void set(int* values, int index) { values[index] = 1; }')
    subprocess.run(["g++", "-shared", "-fPIC", "-g", "-fsanitize=address", source, "-o", compiled], check=True)
    names = ("libasan.so", "libstdc++.so")
    preloaded = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    code = f"""
import ctypes, torch
toy, values = ctypes.CDLL({str(compiled)!r}), torch.zeros(12, dtype=torch.int32)
for index in (11, 12):
    toy.set(ctypes.c_void_p(values.data_ptr()), index)
    print("wrote", index, flush=True)
"""
    environment = os.environ | {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "wrote 11\n"
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and "in set" in done.stderr


def test_address_sanitizer_is_refused_in_time(cmake_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        pytest.skip("this process runs under the address sanitizer")
    monkeypatch.setenv("UPSNET_SANITIZE", "address,undefined")
    with pytest.raises(BuildError, match=r"needs libasan from the start .* `make sanitize`"):
        library.load("cpu")


@pytest.mark.parametrize(
    ("name", "message"), [("cpu", "no C\\+\\+ compiler was found; install g\\+\\+"), ("cuda", "no nvcc was found")]
)
def test_missing_compiler(cmake_log: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    which = shutil.which
    monkeypatch.setattr(building.shutil, "which", lambda *a, **k: which("cmake") if a[0] == "cmake" else None)
    if name == "cuda":
        monkeypatch.setenv("CXX", "g++")
    with pytest.raises(BuildError, match=message):
        library.load(name, "90")


def test_reference_serves_without_a_compiler_and_says_so_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert library.compiled(CPU) is None
            indices, counts = plugins_cuda.nms(boxes, scores, 0.5, 0.0, 3)
            assert (indices.tolist(), counts.tolist()) == ([[0, 2, 0]], [2])
    messages = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert len(messages) == 1
    assert messages[0].startswith("no compiled operators for cpu, the slower PyTorch reference serves instead: no C++")


def test_missing_cmake(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(building.shutil, "which", lambda *a, **k: None if a[0] == "cmake" else which(*a, **k))
    with pytest.raises(BuildError, match="cmake was not found; `pip install cmake`"):
        library.load("cpu")


def test_compiler_that_does_not_run(cmake_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(BuildError, match="'/nowhere/g\\+\\+' does not run"):
        library.load("cpu")


def test_failed_compilation_names_the_error_and_the_log(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(BuildError, match=r"kernel\.cu:3: error: no such thing \(whole log: .*cpu-\w*\.log\)"):
        library.load("cpu")
    (log,) = fresh.glob("cpu-*.log")
    assert "no such thing" in log.read_text()
    monkeypatch.delenv("FAIL")
    assert call(library.load("cpu"), 1) == 101


def test_processes_that_start_together_fail_once(cmake_log: Path, fresh: Path, project_root: Path) -> None:
    """Those that waited for the one that compiled; whoever comes later tries again."""
    code = f"""
import os
from pathlib import Path
from plugins_cuda import building, library
def come_to(lock, take=building.FileLock):
    Path(f"{{lock}}.{{os.getpid()}}").touch()
    return take(lock)
building.BUILD, building.FileLock = Path({str(fresh)!r}), come_to
try:
    library.load("cpu")
except library.BuildError as error:
    print(error)
"""
    command, all_came = [sys.executable, "-c", code], fresh / "all-came"
    options: Any = {"cwd": project_root, "env": os.environ | {"FAIL": "1", "WAIT_FOR": str(all_came)}}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) for _ in range(3)]
    while len(list(fresh.glob("cpu.lock.*"))) < 3:
        assert all(process.poll() is None for process in started)
        time.sleep(0.02)
    all_came.touch()
    (answer,) = {process.communicate()[0] for process in started}
    assert answer.startswith("compiling it failed: kernel.cu:3: error: no such thing (whole log: ")
    assert len(cmake_log.read_text().splitlines()) == 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    assert len(cmake_log.read_text().splitlines()) == 2


def test_a_checkout_that_is_read_only_has_its_libraries_in_the_cache(
    cmake_log: Path, fresh: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh.write_text("a file stands where the folder should")
    umask = os.umask(0)
    try:
        path = library.load("cpu").path
    finally:
        os.umask(umask)
    cache = tmp_path / "cache" / "upsnet-trt" / "operators"
    assert path.is_relative_to(cache)
    assert [each.stat().st_mode & 0o777 for each in (cache, cache.parent)] == [0o700] * 2
    expected = f"compiling the operators for cpu (once, into {cache}, as {fresh} cannot be written to) ...\n"
    assert capfd.readouterr().err == expected
    assert (library.load("cpu").path, builds(cmake_log)) == (path, 1)
    cache.chmod(0o770)
    with pytest.raises(BuildError, match=r"operators: others can write there, so no code is loaded from it; `chmod"):
        library.load("cpu")


def test_no_folder_can_be_written(cmake_log: Path, fresh: Path, tmp_path: Path) -> None:
    for folder in (fresh, tmp_path / "cache"):
        folder.write_text("a file stands where the folder should")
    with pytest.raises(BuildError, match=r"build cannot be written to, and there is no cache \(.*; set XDG_CACHE_HOME"):
        library.load("cpu")


def test_libraries_of_a_checkout_that_became_read_only_serve(
    cmake_log: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.load("cpu").path
    monkeypatch.setattr(building, "_writable_folder", lambda: fresh / "nowhere")
    assert library.load("cpu").path == path


CMAKE_LOGS = {
    "nvcc refuses the host compiler, in CMake's own words": (
        """CMake Error at share/Modules/CMakeDetermineCompilerId.cmake:739 (message):
  Compiling the CUDA compiler identification source file
  "CMakeCUDACompilerId.cu" failed.

  The output was:

  1

  crt/host_config.h:143:2: error: #error --
  unsupported GNU version! gcc later than 13 is not supported!

Call Stack (most recent call first):
  CMakeLists.txt:3 (enable_language)
-- Detecting CXX compile features - errors
""",
        "crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 13 is not supported!",
    ),
    "a message of ours": (
        """CMake Error at CMakeLists.txt:152 (message):
   nvcc does not work here: host_config.h:143:2: error: unsupported GNU version!


-- Configuring incomplete, errors occurred!
""",
        "nvcc does not work here: host_config.h:143:2: error: unsupported GNU version!",
    ),
    "a package": (
        """CMake Warning at a.cmake:1 (message): slow
CMake Error at FindPackageHandleStandardArgs.cmake:230 (message):
  Could NOT find OpenMP_CXX (missing: OpenMP_CXX_FLAGS OpenMP_CXX_LIB_NAMES)
Call Stack (most recent call first):
  CMakeLists.txt:48 (find_package)
""",
        "Could NOT find OpenMP_CXX (missing: OpenMP_CXX_FLAGS OpenMP_CXX_LIB_NAMES)",
    ),
    "a compiler": (
        "nms/launch.cu(3): error: expected a ;\n  int a\nmake[3]: *** [x.o] Error 1\n",
        "nms/launch.cu(3): error: expected a ;",
    ),
    "nothing": ("done\n", "no error line"),
}


@pytest.mark.parametrize(("log", "expected"), CMAKE_LOGS.values(), ids=CMAKE_LOGS)
def test_the_reason_is_what_is_shown(log: str, expected: str) -> None:
    assert building._first_error(log) == expected


def test_damaged_library(cmake_log: Path) -> None:
    path = building.build("cpu", "")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BuildError, match=r"libupsnet_cpu\.so cannot be loaded \(delete it to have it made anew\)"):
        library.load("cpu")
    path.unlink()
    assert library.load("cpu").path == path


# A library of CUDA 13.0, and a driver that serves DRIVER; launches fail with -value.
CUDA_TOY = """
#include <cstddef>
struct Params { int value; int* result; };
extern "C" int upsnet_cuda_status(int* runtime, int* driver) {
  *runtime = 13000;
  *driver = DRIVER;
  return DRIVER < 13000 ? 35 : 0;
}
extern "C" const char* upsnet_error_string(int status) { return status == 35 ? "driver is insufficient" : "no kernel"; }
extern "C" const char* upsnet_toy_params_layout() { return "value:0:4 result:8:8 "; }
extern "C" size_t upsnet_toy_workspace_size(const Params*) { return 1; }
extern "C" int upsnet_toy_launch(const Params* params, void*, size_t, void*) { return -params->value; }
"""


def cuda_toy(folder: Path, driver: int) -> Path:
    (folder / "cuda.cpp").write_text(CUDA_TOY)
    path = folder / f"libupsnet_cuda_{driver}.so"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["g++", "-shared", "-fPIC", f"-DDRIVER={driver}", str(folder / "cuda.cpp"), "-o", str(path)]
    subprocess.run(command, check=True, env=environment)
    return path


def test_a_driver_older_than_the_runtime_is_told_of_at_loading(tmp_path: Path, toy: Path) -> None:
    with pytest.raises(BuildError) as refused:
        Library("cuda", cuda_toy(tmp_path, 12080))
    assert str(refused.value) == (
        f"{tmp_path}/libupsnet_cuda_12080.so holds the runtime of CUDA 13.0, and this machine's driver serves up to "
        "CUDA 12.8, CUDA error 35 (driver is insufficient): update the driver, or set CUDACXX to the nvcc of a toolkit "
        "that it serves"
    )
    with pytest.raises(BuildError, match="machine's NVIDIA driver is missing, CUDA error 35"):
        Library("cuda", cuda_toy(tmp_path, 0))
    with pytest.raises(BuildError, match="is of another version; make it anew"):
        Library("cuda", toy)


def test_errors_of_a_launch_have_words(tmp_path: Path) -> None:
    served = Library("cuda", cuda_toy(tmp_path, 13020))
    assert call(served, 0) == -1
    with pytest.raises(RuntimeError, match=r"^toy: the cuda library could not run it, CUDA error 209 \(no kernel\)$"):
        call(served, -209)
    with pytest.raises(RuntimeError, match=r"CUDA error 1 \(sizes or numbers that it does not support\)$"):
        call(served, -1)


def test_a_gpu_that_is_too_old_is_told_of_before_anything_is_compiled(cmake_log: Path) -> None:
    with pytest.raises(
        BuildError, match=r"^the GPU is too old: it is sm_70, the kernels need sm_75 \(a T4\) or newer$"
    ):
        library.load("cuda", "70")
    assert builds(cmake_log) == 0


def test_ready_made_libraries(cmake_log: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UPSNET_OPERATORS", str(toy.parent))
    served = library.compiled(CPU)
    assert served is not None and served.path == toy
    with pytest.raises(BuildError, match=r"holds no libupsnet_cuda\.so; run `make plugins`"):
        library.load("cuda", "90")
    assert builds(cmake_log) == 0


def test_openmp_is_pytorchs() -> None:
    """Two OpenMP runtimes in one process would keep two pools of spinning threads."""
    torch.ones(1000).sum()
    library.load("cpu")
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"\S*/lib(?:gomp|omp|iomp)\S*", maps))) == 1
