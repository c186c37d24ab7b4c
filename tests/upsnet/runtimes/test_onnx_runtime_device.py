"""Where an ONNX Runtime session runs, without a GPU: a stand-in for its CUDA provider."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from upsnet.errors import InputError
from upsnet.runtimes import onnx_runtime
from upsnet.runtimes.onnx_runtime import CPU, CUDA, open_session


class Sessions:
    """In place of onnxruntime's InferenceSession. What its CUDA provider does: work, raise, or not load in silence."""

    def __init__(self, cuda: Exception | bool) -> None:
        self.cuda = cuda
        self.asked: list[tuple[list[Any], dict[str, int]]] = []
        self.providers = [CPU]

    def __call__(self, model: str, options: object, providers: list[Any], **more: int) -> Sessions:
        self.asked.append((providers, more))
        self.providers = [CPU]
        if providers != [CPU]:
            if isinstance(self.cuda, Exception):
                raise self.cuda
            self.providers = [CUDA, CPU] if self.cuda else [CPU]
        return self

    def get_providers(self) -> list[str]:
        return self.providers


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an NVIDIA driver and onnxruntime-gpu."""
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnx_runtime.ort, "preload_dlls", lambda: print("a list of what is not there"))
    monkeypatch.setattr(onnx_runtime, "DRIVER_LIBRARY", "libc.so.6")
    monkeypatch.setattr("upsnet.device.DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "model.onnx").touch()
    return tmp_path / "model.onnx"


def start(monkeypatch: pytest.MonkeyPatch, cuda: Exception | bool) -> Sessions:
    sessions = Sessions(cuda)
    monkeypatch.setattr(onnx_runtime.ort, "InferenceSession", sessions)
    return sessions


@pytest.mark.parametrize(("device", "number"), [("auto", "0"), ("cuda", "0"), ("cuda:3", "3")])
def test_the_gpu_of_that_number_in_float32(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, number: str
) -> None:
    sessions = start(monkeypatch, cuda=True)
    assert open_session(model, device=device).get_providers() == [CUDA, CPU]
    expected = [(CUDA, {"device_id": number, "use_tf32": "0"}), CPU]
    assert sessions.asked == [(expected, {"enable_fallback": 0})]
    assert capsys.readouterr() == ("", "")


def test_the_cpu_is_asked_for_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = start(monkeypatch, cuda=True)
    open_session(model, device="cpu")
    open_session(model)
    assert sessions.asked == [([CPU], {})] * 2


BROKEN = {
    "raises": (RuntimeError("CUDA failure 35:\nCUDA driver version is insufficient"), "CUDA failure 35: CUDA driver"),
    "does not load": (False, "its CUDA provider does not load; ONNX Runtime's lines on stderr say why"),
}


@pytest.mark.parametrize(("cuda", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_gpu_that_does_not_work(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cuda: Exception | bool,
    reason: str,
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    start(monkeypatch, cuda)
    with pytest.raises(InputError, match=rf"ONNX Runtime cannot run it on cuda:1 \({reason}.*device cpu needs no GPU"):
        open_session(model, device="cuda:1")
    assert not caplog.messages
    assert open_session(model, device="auto").get_providers() == [CPU]
    (said,) = caplog.messages
    assert reason in said and "ONNX Runtime cannot use" in said


def test_no_driver_and_no_cuda_in_the_package(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    sessions = start(monkeypatch, cuda=True)
    monkeypatch.setattr(onnx_runtime, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(InputError, match=r"no NVIDIA driver: libno-such-driver\.so\.1: cannot open"):
        open_session(model, device="cuda")
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CPU])
    with pytest.raises(InputError, match="the package onnxruntime has no CUDA; install onnxruntime-gpu in its place"):
        open_session(model, device="cuda")
    assert not sessions.asked
    open_session(model, device="auto")  # that package was chosen: nothing to warn of
    assert sessions.asked == [([CPU], {})] and not caplog.messages
