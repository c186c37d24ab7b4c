"""The GPU check without a GPU: its kernel suite on every front, that the suite notices mistakes, and its steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import plugins_cuda
from plugins_cuda import gpu_check, kernel_suite
from plugins_cuda.gpu_check import Skip, Step
from tests.plugins_cuda.conftest import Front

CPU = torch.device("cpu")


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


def test_kernel_suite_notices_nan_and_results_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    right = plugins_cuda.roi_align_fpn
    check = first_check("roi_align_fpn")
    monkeypatch.setattr(plugins_cuda, "roi_align_fpn", lambda *a, **k: right(*a, **k) * float("nan"))
    with pytest.raises(AssertionError, match="error nan"):
        check()
    calls = iter(range(9))
    monkeypatch.setattr(plugins_cuda, "roi_align_fpn", lambda *a, **k: right(*a, **k) + 1e-9 * next(calls))
    with pytest.raises(AssertionError, match="two runs differ"):
        check()


def test_kernel_suite_command_counts_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AssertionError("error 2, allowed 1\nmore")

    monkeypatch.setattr(
        kernel_suite, "checks", lambda *_: iter([kernel_suite.Check("a", fail), kernel_suite.Check("b", lambda: None)])
    )
    assert kernel_suite.main(["--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a: AssertionError: error 2, allowed 1 (")
    assert lines[1].startswith("b: ok") and lines[2] == "1 failed: a"


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


def test_commands_are_logged_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say = "import os; print('one'); print(os.environ['WORD']); raise SystemExit({})"
    assert gpu_check.must_pass("ok", [sys.executable, "-c", say.format(0)], tmp_path, {"WORD": "two"}) == "two"
    assert (tmp_path / "ok.log").read_text() == "one\ntwo\n"
    with pytest.raises(RuntimeError, match=r"exit status 3: two \(see .*bad\.log\)"):
        gpu_check.must_pass("bad", [sys.executable, "-c", say.format(3)], tmp_path, {"WORD": "two"})
    monkeypatch.setattr(gpu_check, "TIMEOUT_S", 0.2)
    with pytest.raises(RuntimeError, match=r"stopped after 0\.2 s"):
        gpu_check.must_pass("slow", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)


def test_steps_say_what_they_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for name in ("TENSORRT_INCLUDE_DIR", "UPSNET_OPERATORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name in ("hypothesis", "pydantic") else name)
    steps = {step.name: step.run for step in gpu_check.all_steps(CPU, tmp_path)}
    for name, reason in {
        "pytest": "not installed: hypothesis, pydantic",
        "memcheck": "compute-sanitizer is not on PATH",
        "racecheck": "compute-sanitizer is not on PATH",
        "enqueue": "set TENSORRT_INCLUDE_DIR",
        "rtx_engine": "no --engine and --plugins were given",
    }.items():
        with pytest.raises(Skip, match=reason):
            steps[name]()


def test_sanitizer_step_gives_every_tensor_its_own_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = gpu_check.sanitize("racecheck", torch.device("cuda"), tmp_path)
    assert said.startswith("1 --tool racecheck --error-exitcode 9")
    assert said.endswith("-m plugins_cuda.kernel_suite --device cuda --no-graphs")
