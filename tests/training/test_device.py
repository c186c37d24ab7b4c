"""PyTorch's devices by upsnet's words, on machines that have other GPUs than this one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

import training.distributed
from training.device import describe_device, open_device
from training.distributed import Process, processes
from upsnet.errors import InputError

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"


def refuse() -> None:
    raise RuntimeError(TOO_OLD)


def broken() -> bool:
    warnings.warn(f"CUDA initialization: {TOO_OLD}", UserWarning, stacklevel=2)
    return False


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Those that became CUDA's current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.fixture
def broken_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("upsnet.device.DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_have_their_number(two_gpus: list[torch.device]) -> None:
    found = [str(open_device(word)) for word in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    assert describe_device(torch.device("cuda:1")) == "cuda:1 (NVIDIA H200)"
    with pytest.raises(InputError, match=r"^device 'cuda:2': PyTorch sees 2, counted from cuda:0; use one of these"):
        open_device("cuda:2")


def test_a_broken_driver_is_told_of(broken_driver: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    reason = "The NVIDIA driver on your system is too old (found version 11040)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_device("auto", warn=False) == open_device("cpu") == torch.device("cpu")
        assert not caplog.messages
        assert open_device("auto") == torch.device("cpu")
    assert caplog.messages == [
        f"this machine has an NVIDIA GPU that PyTorch cannot use ({reason}): the CPU computes instead"
    ]
    with pytest.raises(InputError) as refused:
        open_device("cuda")
    assert str(refused.value) == f"device 'cuda': PyTorch has no GPU here ({reason}); use --device cpu"
    assert Process(0, 1, torch.device("cpu")).described == f"cpu (PyTorch has no GPU: {reason})"


def test_a_pytorch_for_cpus_was_chosen(
    broken_driver: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert open_device("auto") == torch.device("cpu")
    assert not caplog.messages


def test_the_gpu_of_a_process_is_cudas_current_one(
    two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cuda:1") as process:
        assert process.described == "cuda:1 (NVIDIA H200)"
    with processes("cpu") as process:
        assert process.described == "cpu"
    assert two_gpus == [torch.device("cuda:1")]


def test_several_processes_choose_their_gpus_themselves(
    two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.distributed, "_heartbeat", None)  # and again at the end
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with processes("cuda") as process:
        assert process.described == "cuda:1 (NVIDIA H200), and another GPU for each other process of 2"
    assert two_gpus == [torch.device("cuda:1")]
    each = "'cuda:1': each process of a run takes a GPU of its own; use cuda, or auto"
    with pytest.raises(InputError, match=each), processes("cuda:1"):
        pass
