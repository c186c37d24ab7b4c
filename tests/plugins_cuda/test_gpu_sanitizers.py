"""What the GPU check asks compute-sanitizer, and makes of its answers, without either."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from plugins_cuda.gpu_check import sanitizers
from plugins_cuda.gpu_check.process import Ended, Skip
from tests.plugins_cuda.test_gpu_check import program

CHECKED = "nms x: ok (0.01 s)\nall passed"
CLEAN = "========= ERROR SUMMARY: 0 errors"
WRITE = """========= Invalid __global__ write of size 4 bytes
=========     at upsnet::nms::nms_kernel+0x120 in launch.cu:55
=========     by thread (3,0,0) in block (0,0,0)"""


@pytest.mark.parametrize(
    ("status", "output", "kind", "text"),
    [
        (
            0,
            f"========= COMPUTE-SANITIZER\n{CHECKED}\n{CLEAN}",
            str,
            "ERROR SUMMARY: 0 errors; 1 checks",
        ),
        (0, f"{CHECKED}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", str, "0 hazards"),
        (0, f"========= Warning: x is not supported\n{CHECKED}\n{CLEAN}", str, "ERROR SUMMARY: 0 errors"),
        (
            9,
            f"{WRITE}\nall passed\n========= ERROR SUMMARY: 1 error",
            RuntimeError,
            "1 error: Invalid __global__ write",
        ),
        (9, "all passed\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", RuntimeError, "1 haz"),
        (None, f"nms x: {WRITE}", RuntimeError, "not finished: Invalid __global__ write of size 4 bytes; at upsnet"),
        (None, "nms x: ", RuntimeError, "stopped after 60 s, at: nms x:"),
        (
            1,
            f"========= Error: Device not supported. See the manual\nRuntimeError: 999\n{CLEAN}",
            Skip,
            "Device not supp",
        ),
        (1, "========= Error: Device not supported\n========= ERROR SUMMARY: 2 errors", Skip, "Device not supported"),
        (255, "========= Internal Sanitizer Error: no access to the debugger interface", Skip, "Internal Sanitizer"),
        (0, f"all passed\n{CLEAN}", RuntimeError, "no check ran"),
        (0, CLEAN, RuntimeError, "no output"),
        (0, "all passed", RuntimeError, "all passed"),
        (1, f"nms x: AssertionError: 3 of 9 differ (1.0 s)\n1 failed: nms x\n{CLEAN}", RuntimeError, "1 failed: nms x"),
    ],
)
def test_what_a_sanitizer_says_is_understood(status: int | None, output: str, kind: type, text: str) -> None:
    ended = Ended(status, output.splitlines(), Path("log"), 60)
    if kind is str:
        assert text in sanitizers.verdict(ended)
    else:
        with pytest.raises(kind) as caught:
            sanitizers.verdict(ended)
        assert text in str(caught.value)


def test_a_finding_names_its_first_lines() -> None:
    with pytest.raises(RuntimeError, match=r"nms_kernel\+0x120 in launch.cu:55; by thread \(3,0,0\)"):
        sanitizers.verdict(
            Ended(9, [*WRITE.splitlines(), "all passed", "========= ERROR SUMMARY: 1 error"], Path("log"), 60)
        )


def test_sanitizers_run_the_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" > {tmp_path}/call; echo "{CHECKED}"; echo "{CLEAN}"'
    fake = program(tmp_path, "compute-sanitizer", text)
    monkeypatch.setattr(sanitizers, "find_tool", {"compute-sanitizer": str(fake)}.get)
    assert sanitizers.sanitize("racecheck", "python3", tmp_path, time.monotonic() + 60).startswith("ERROR SUMMARY: 0")
    call = (tmp_path / "call").read_text()
    assert call.startswith("1 --tool racecheck ") and "--report-api-errors no" in call
    assert call.rstrip().endswith("python3 -m plugins_cuda.kernel_suite --device cuda --no-graphs --size middle")
    monkeypatch.setattr(sanitizers, "find_tool", {}.get)
    with pytest.raises(Skip, match="compute-sanitizer was not found"):
        sanitizers.sanitize("memcheck", "python3", tmp_path, time.monotonic() + 60)
