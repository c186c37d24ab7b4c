"""A toy operator, and a stand-in for CMake that makes its library."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plugins_cuda import library
from plugins_cuda.library import Library
from upsnet.kernels import building

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
# Logs its arguments; `--build FOLDER --target upsnet_NAME` leaves the toy library there. WAIT_FOR: a file. FAIL: what
# the compiler says, and fails.
CMAKE = """#!/bin/sh
echo "$@" >> {log}
while [ -n "$WAIT_FOR" ] && [ ! -e "$WAIT_FOR" ]; do sleep 0.05; done
[ -z "$FAIL" ] || {{ echo "$FAIL"; exit 1; }}
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
