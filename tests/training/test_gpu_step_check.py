"""The check that `make gpu-check` runs on a GPU, on a CPU: its steps, its last line, its exit status."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from training import gpu_step_check
from training.gpu_step_check import CASES, main
from training.step import Stepper


@pytest.fixture(autouse=True)
def fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step_check, "CASES", {name: CASES[name] for name in ("fp32", "fp16, channels last")})


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_takes_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Stepper.step

    def counted(self: Stepper, batches: Any, number: int, signals: Any) -> None:
        steps.append(number)
        step(self, batches, number, signals)

    monkeypatch.setattr(Stepper, "step", counted)
    assert main(["--device", "cpu"]) == 0
    assert last_line(capsys) == "training step: 2 cases ok, on a CPU, which nobody waits for"
    assert steps == [0, 1, 2] * 2


def test_says_where_something_waits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*_: Any) -> None:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    monkeypatch.setattr("training.losses.total.assign_anchors", waits)
    assert main(["--device", "cpu"]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("fp32: training/losses/total.py:")
    assert first.endswith(": RuntimeError: called a synchronizing CUDA operation")
    assert last.startswith("training step: FAILED in 2 of 2 cases (fp32; fp16, channels last), on a CPU")


def test_waiting_is_an_error_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with gpu_step_check.waiting_is_an_error(torch.device("cpu")):
        assert not modes
    owners: tuple[Any, ...] = (torch.cuda, torch.cuda.Event, torch.cuda.Stream)
    before = [owner.synchronize for owner in owners]
    with pytest.raises(ValueError), gpu_step_check.waiting_is_an_error(torch.device("cuda:0")):
        assert modes == ["error"]
        for owner in owners:  # of which PyTorch's mode says nothing
            with pytest.raises(RuntimeError, match=r"^synchronize\(\) waits for the GPU"):
                owner.synchronize(None)
        raise ValueError
    assert modes == ["error", "default"]
    assert [owner.synchronize for owner in owners] == before


def test_is_left_out_for_want_of_a_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydantic" else found(name))
    assert main([]) == 0
    cure = f"`{sys.executable} -m pip install pydantic`"
    assert last_line(capsys) == f"training step: skipped, without pydantic; {cure} makes it run"


def test_needs_no_other_package(project_root: Path) -> None:
    """Those that the project requires besides; the first two are what a machine with a GPU often lacks."""
    others = ("typer", "click", "rich", "onnx", "onnxruntime", "onnxscript", "tensorrt", "grpc", "scipy")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({others}))
import torch
from training.gpu_step_check import configuration, made_up_batch, make_stepper
for case in ("fp32", "original conventions"):
    make_stepper(configuration(case), torch.device("cpu"))
made_up_batch(lambda tensor: tensor)
"""
    subprocess.run([sys.executable, "-c", code], cwd=project_root, check=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_is_left_out_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert last_line(capsys) == "training step: skipped, PyTorch sees 0 CUDA devices"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_nothing_waits_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 0
