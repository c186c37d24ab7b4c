"""The words for a device, and the GPUs of a machine that has none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from upsnet import device
from upsnet.device import gpu_names, parse_device, warn_of_unused_gpu
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
