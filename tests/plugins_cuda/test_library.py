"""Building, finding and calling the compiled libraries, with a toy operator and a stand-in for CMake."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import plugins_cuda
from plugins_cuda import library
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
# Logs its arguments; `--build FOLDER --target upsnet_NAME` leaves the toy library there.
CMAKE = """#!/bin/sh
echo "$@" >> {log}
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
    monkeypatch.setattr(library, "BUILD", tmp_path / "build")
    for remembered in (library._load_or_warn, library._version):
        remembered.cache_clear()
    yield tmp_path / "build"
    for remembered in (library._load_or_warn, library._version):
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
    monkeypatch.setattr(library, "SOURCES", sources)
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
from plugins_cuda import library
library.BUILD = Path({str(fresh)!r})
print(library.load("cpu").path)
"""
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert (len(paths), builds(cmake_log)) == (1, 1)


def test_compiler_and_sanitizers_are_part_of_the_key(
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
    monkeypatch.setattr(library.shutil, "which", lambda *a, **k: which("cmake") if a[0] == "cmake" else None)
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
    monkeypatch.setattr(library.shutil, "which", lambda *a, **k: None if a[0] == "cmake" else which(*a, **k))
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
    with pytest.raises(BuildError, match=r"kernel\.cu:3: error: no such thing \(whole log: .*cpu\.log\)"):
        library.load("cpu")
    assert "no such thing" in (fresh / "cpu.log").read_text()
    monkeypatch.delenv("FAIL")
    assert call(library.load("cpu"), 1) == 101


def test_build_folder_that_cannot_be_written(cmake_log: Path, fresh: Path) -> None:
    fresh.write_text("a file stands where the folder should")
    with pytest.raises(BuildError, match="build cannot be written to"):
        library.load("cpu")


def test_damaged_library(cmake_log: Path) -> None:
    path = library._build("cpu", "")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BuildError, match=r"libupsnet_cpu\.so cannot be loaded \(delete it to have it made anew\)"):
        library.load("cpu")
    path.unlink()
    assert library.load("cpu").path == path


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
