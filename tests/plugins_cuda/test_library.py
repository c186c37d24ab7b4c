"""Finding and calling the compiled libraries, with a toy operator."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import plugins_cuda
from plugins_cuda import library
from plugins_cuda.library import BuildError, Library
from tests.plugins_cuda.toy import CPU, Params, builds, call


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
