"""The check of ONNX Runtime's CUDA kernels, rehearsed: on the CPU, by the emulator."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import plugins_cuda
from plugins_cuda import library, onnxruntime_check
from plugins_cuda.gpu_check.process import Skip
from plugins_cuda.gpu_check.steps import Machine, onnx_runtime
from plugins_cuda.onnxruntime_check import Place
from tests.plugins_cuda.onnxruntime.nodes import library_file


def test_the_rehearsal_passes(tmp_path: Path) -> None:
    assert onnx_runtime(Machine(tmp_path, rehearsed=True), time.monotonic() + 300) == "all passed"
    said = (tmp_path / "onnxruntime.log").read_text()
    assert said.count("ok (") == 2 + 3 * 6  # NMS, and the others in each type


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right, place = plugins_cuda.nms, Place(torch.device("cpu"), str(library_file("onnxruntime_emulated")))

    def wrong(*arguments: Any, **options: Any) -> Any:
        indices, counts = right(*arguments, **options)
        return indices, counts + 1

    wrong.__name__, wrong.__signature__ = "nms", inspect.signature(right)  # type: ignore[attr-defined]
    case = next(case for case in onnxruntime_check.cases() if case.name == "nms")
    with library.emulation():
        onnxruntime_check.check(case, place)
        with pytest.raises(AssertionError, match="one session, several sizes: output 1 differs in 2 values"):
            onnxruntime_check.check(onnxruntime_check.Case("nms", wrong, case.arguments), place)


def test_without_the_provider_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Skip, match="onnxruntime with CUDA; `pip install onnx onnxruntime-gpu`"):
        onnx_runtime(Machine(tmp_path), time.monotonic() + 60)
