"""NVIDIA's driver, by stand-ins for libcuda that were compiled: what it says, by name, and what mends it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from upsnet import device, driver
from upsnet.driver import Gpu, find_driver

LIBRARY = """
#include <stdlib.h>
#include <string.h>
static int number(const char* name) { const char* text = getenv(name); return text ? atoi(text) : 0; }
int cuInit(unsigned flags) { return number("FAKE_INIT"); }
int cuDriverGetVersion(int* version) { *version = number("FAKE_CUDA"); return 0; }
int cuDeviceGetCount(int* count) { *count = number("FAKE_GPUS"); return 0; }
int cuDeviceGet(int* handle, int ordinal) { *handle = 40 + ordinal; return 0; }
int cuDeviceGetName(char* name, int length, int handle) { strncpy(name, "NVIDIA A10", length); return handle < 40; }
int cuDeviceGetAttribute(int* value, int what, int handle) { *value = what == 75 ? 8 : 6; return handle < 40; }
int cuDeviceTotalMem_v2(size_t* bytes, int handle) { *bytes = 24ul << 30; return handle < 40; }
int cuGetErrorName(int status, const char** text) {
  *text = status == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : status == 999 ? "CUDA_ERROR_UNKNOWN" : 0;
  return *text == 0;
}
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "cuda.c").write_text(LIBRARY)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["gcc", "-shared", "-fPIC", str(folder / "cuda.c"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True, env=environment)
    return folder / "libcuda.so.1"


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "DRIVER", tmp_path / "proc")
    monkeypatch.setattr(driver, "PCI", tmp_path / "pci")
    monkeypatch.setattr(device, "DRIVER_LIBRARY", "libnothing.so.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def add_gpu(folder: Path) -> None:
    for name, vendor, kind in (("00", "0x8086", "0x030000"), ("01", "0x10de", "0x030200"), ("02", "0x10de", "0x0604")):
        (folder / "pci" / name).mkdir(parents=True)
        (folder / "pci" / name / "vendor").write_text(f"{vendor}\n")
        (folder / "pci" / name / "class").write_text(f"{kind}\n")


def test_no_gpu() -> None:
    found = find_driver()
    assert (found.problem, found.has_gpu) == ("this machine has no NVIDIA GPU that is visible here", False)


def test_a_gpu_without_a_driver(tmp_path: Path) -> None:
    add_gpu(tmp_path)
    found = find_driver()
    assert (found.problem, found.cure) == ("there is an NVIDIA GPU, and no driver for it", "install NVIDIA's driver")
    assert found.has_gpu


def test_a_container_without_the_drivers_library(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    found = find_driver()
    assert found.has_gpu and "libnothing.so.1: cannot open shared object file" in found.problem
    assert "--gpus all" in found.cure


@pytest.mark.parametrize(
    "status, problem, cure",
    [
        (803, "NVIDIA's driver does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine"),
        (999, "NVIDIA's driver does not start: CUDA_ERROR_UNKNOWN", "nvidia-modprobe"),
        (7, "NVIDIA's driver does not start: error 7", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start(
    libcuda: Path, monkeypatch: pytest.MonkeyPatch, status: int, problem: str, cure: str
) -> None:
    monkeypatch.setattr(device, "DRIVER_LIBRARY", str(libcuda))
    monkeypatch.setenv("FAKE_INIT", str(status))
    found = find_driver()
    assert found.problem == problem and cure in found.cure and found.has_gpu and not found.gpus


def test_gpus_that_are_hidden_or_absent(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER_LIBRARY", str(libcuda))
    monkeypatch.setenv("FAKE_INIT", "100")
    assert not find_driver().has_gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert find_driver()[:2] == ("no GPU is visible: CUDA_VISIBLE_DEVICES=-1", "unset it")
    monkeypatch.setenv("FAKE_INIT", "0")
    assert find_driver().problem == "the driver knows no GPU"


def test_a_driver_that_works(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER_LIBRARY", str(libcuda))
    monkeypatch.setenv("FAKE_CUDA", "12080")
    monkeypatch.setenv("FAKE_GPUS", "2")
    found = find_driver()
    assert not found.problem and found.cuda == (12, 8)
    assert found.gpus == (Gpu("NVIDIA A10", "86", 24 * 2**30),) * 2
