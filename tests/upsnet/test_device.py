"""The words for a device, and the GPUs of a machine that has none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upsnet import device
from upsnet.device import compute_capability, driver_version, gpu_names, gpu_problem, parse_device, warn_of_unused_gpu
from upsnet.errors import InputError
from upsnet.machine import machine_facts


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with two GPUs, as their driver shows them."""
    for slot, model in (("0000:81:00.0", "NVIDIA H200"), ("0000:0a:00.0", "Tesla T4")):
        folder = tmp_path / "nvidia" / "gpus" / slot
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 173\nGPU UUID: \t GPU-1\n")
    monkeypatch.setattr(device, "DRIVER", tmp_path / "nvidia")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia"


def test_the_words() -> None:
    found = [parse_device(word) for word in ("auto", "cpu", "cuda", "cuda:0", "cuda:12")]
    assert found == [("auto", 0), ("cpu", 0), ("cuda", 0), ("cuda", 0), ("cuda", 12)]
    assert [str(each) for each in found] == ["auto", "cpu", "cuda:0", "cuda:0", "cuda:12"]


@pytest.mark.parametrize(
    "word", ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1 ", "cuda:\u0661", "cuda:9999", "mps", None]
)
def test_any_other_word_is_refused(word: object) -> None:
    with pytest.raises(InputError, match=r"^device .*: use auto, cpu, cuda or cuda:N$"):
        parse_device(word)


def test_the_machine_names_its_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_facts()["gpus"] == "Tesla T4, NVIDIA H200"
    monkeypatch.setattr(device, "DRIVER", driver / "absent")
    assert gpu_names() == [] and "gpus" not in machine_facts()


def test_a_gpu_that_nobody_uses_is_told_of(
    driver: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    warn_of_unused_gpu("PyTorch", "the driver is too old")
    expected = (
        "this machine has an NVIDIA GPU that PyTorch cannot use (the driver is too old): the CPU computes instead"
    )
    assert caplog.messages == [expected]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    warn_of_unused_gpu("PyTorch", "hidden")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(device, "DRIVER", driver / "absent")
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    warn_of_unused_gpu("PyTorch", "there is none")
    assert caplog.messages == [expected]


class FakeDriver:
    """libcuda.so.1 as far as it is asked; a pointer's own object is in `_obj`."""

    def __init__(self, init: int = 0, count: int = 1) -> None:
        self.cuInit = lambda flags: init
        self.cuDeviceGetCount = lambda pointer: self.write(pointer, count)
        self.cuDriverGetVersion = lambda pointer: self.write(pointer, 13010)
        self.cuGetErrorName = lambda status, pointer: self.write(pointer, b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
        self.cuGetErrorString = lambda status, pointer: self.write(pointer, b"system has unsupported display driver")

    @staticmethod
    def write(pointer: Any, value: object) -> int:
        pointer._obj.value = value
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A machine with this library of the driver (None: without one), perhaps its kernel module, perhaps a card."""

    def make(library: FakeDriver | None, module: bool = False, card: bool = False) -> None:
        def load(name: str) -> FakeDriver:
            if library is None:
                raise OSError(f"{name}: cannot open shared object file")
            return library

        monkeypatch.setattr(device.ctypes, "CDLL", load)
        monkeypatch.setattr(device, "DRIVER", tmp_path / "nvidia")
        monkeypatch.setattr(device, "PCI", tmp_path / "pci")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if module:
            (tmp_path / "nvidia").mkdir()
        for slot, vendor, kind in (("0", "0x8086", "0x030000"), *([("1", "0x10de", "0x030200")] * card)):
            (tmp_path / "pci" / slot).mkdir(parents=True)
            (tmp_path / "pci" / slot / "vendor").write_text(vendor + "\n")
            (tmp_path / "pci" / slot / "class").write_text(kind + "\n")

    return make


def test_a_gpu_that_works(machine: Callable[..., None]) -> None:
    machine(FakeDriver(), module=True, card=True)
    assert gpu_problem() is None and driver_version() == "13.1"


@pytest.mark.parametrize(
    ("library", "module", "card", "expected"),
    [
        (None, False, False, "there is no NVIDIA GPU"),
        (None, False, True, "there is an NVIDIA GPU, but no driver for it (libcuda.so.1 is missing)"),
        (None, True, True, "the NVIDIA driver is loaded, but its library is not usable (libcuda.so.1: cannot open"),
        (FakeDriver(init=100), False, False, "there is no NVIDIA GPU"),
        (FakeDriver(init=100), True, True, "the NVIDIA driver finds no GPU; in a container"),
        (FakeDriver(count=0), False, False, "there is no NVIDIA GPU"),
        (
            FakeDriver(init=803),
            True,
            True,
            "the NVIDIA driver does not work: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: system has unsupported display driver",
        ),
    ],
)
def test_why_there_is_no_gpu(
    machine: Callable[..., None], library: FakeDriver | None, module: bool, card: bool, expected: str
) -> None:
    """A driver that is broken is not a GPU that is missing."""
    machine(library, module, card)
    problem = gpu_problem()
    assert problem is not None and problem.startswith(expected) and "\n" not in problem
    if library is None:
        assert compute_capability(0) == driver_version() == ""


def test_a_gpu_that_is_hidden(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(FakeDriver(init=100), module=True, card=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu_problem() == "CUDA_VISIBLE_DEVICES=-1 hides every NVIDIA GPU"
