"""The GPU check without a GPU: its kernel suite on every front, that the suite notices mistakes, and its steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import plugins_cuda
from plugins_cuda import gpu_check, kernel_suite
from plugins_cuda.gpu_check import Skip, Step
from tests.plugins_cuda.conftest import COMPILED, Front, front_fixture

CPU = torch.device("cpu")
front = front_fixture(COMPILED)


def test_kernel_suite_passes_on_every_front(front: Front) -> None:
    assert kernel_suite.failures(front.device) == {}


def first_check(room: str) -> Callable[[], None]:
    return next(check.run for check in kernel_suite.checks(CPU) if check.name.startswith(f"{room} "))


@pytest.mark.parametrize("room", ["roi_align_fpn", "deform_conv", "nms", "panoptic_fusion"])
def test_kernel_suite_notices_a_wrong_operator(monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    right = getattr(plugins_cuda, room)

    def wrong(*arguments: object, **options: object) -> object:
        result = right(*arguments, **options)
        if isinstance(result, torch.Tensor):
            return result * 1.0001
        changed = result[0].clone()
        changed.flatten()[0] += 1
        return (changed, *result[1:])

    check = first_check(room)
    check()
    monkeypatch.setattr(plugins_cuda, room, wrong)
    with pytest.raises(AssertionError, match=r"error .* allowed|differ"):
        check()


def test_no_gpu_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("error: no NVIDIA GPU")


def test_a_failed_step_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> str:
        raise RuntimeError("exit status 3")

    def skip() -> str:
        raise Skip("compute-sanitizer is not on PATH")

    steps = [Step("build", fail), Step("memcheck", skip), Step("benchmark", lambda: "written")]
    assert gpu_check.check(CPU, tmp_path, steps) == 1
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [(step["name"], step["status"], step["detail"]) for step in summary["steps"]] == [
        ("build", "failed", "exit status 3"),
        ("memcheck", "skipped", "compute-sanitizer is not on PATH"),
        ("benchmark", "passed", "written"),
    ]
    assert summary["environment"]["cores"] >= 1
    assert gpu_check.check(CPU, tmp_path, steps[1:]) == 0
