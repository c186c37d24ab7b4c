"""`upsnet doctor`: the first line says which kernels predictions run with, the exit status whether that is meant."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.upsnet.kernels.test_choice import make_library
from tests.upsnet.kernels.test_choice import plain_environment as plain_environment
from upsnet.command_line import doctor
from upsnet.command_line.command import make_app
from upsnet.contract import LIBRARY
from upsnet.kernels.building import build
from upsnet.kernels.choice import Kernels, kernel_abi
from upsnet.runtimes import onnx_runtime


def ask() -> Result:
    return CliRunner().invoke(make_app(doctor.main), [])


def test_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    library = build("onnxruntime", "")
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    answer = ask()
    kernels, *facts = answer.stdout.splitlines()
    assert kernels.startswith(f"kernels: {LIBRARY}") and kernels.endswith(f", {library}")
    assert [line.partition(": ")[0] for line in facts] == ["onnxruntime", "cpu", "gpu", "compiler", "cmake"]
    assert answer.exit_code == 0


def test_bodies_that_are_meant_and_those_that_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))
    answer = ask()
    assert answer.stdout.startswith(f"kernels: function bodies (UPSNET_OPERATORS={tmp_path} holds no {LIBRARY}; run ")
    assert answer.exit_code == doctor.SLOW
    monkeypatch.setenv("UPSNET_KERNELS", "off")
    answer = ask()
    assert answer.stdout.startswith("kernels: function bodies (UPSNET_KERNELS=off)\n") and answer.exit_code == 0


def test_a_library_that_onnx_runtime_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    library = make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    answer = ask()
    assert answer.stdout.startswith(f"kernels: function bodies (ONNX Runtime {ort.__version__} does not take {library}")
    assert answer.exit_code == doctor.SLOW


def test_onnx_runtime_tells_its_makers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    happened: list[str] = []
    monkeypatch.setenv("UPSNET_KERNELS", "off")

    def registered(kernels: Kernels) -> Kernels:
        happened.append("registered")
        return kernels

    monkeypatch.setattr(ort, "disable_telemetry_events", lambda: happened.append("disabled"))
    monkeypatch.setattr(onnx_runtime, "registered", registered)
    ask()
    assert happened[:2] == ["disabled", "registered"]


def test_programs_and_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "find_tool", lambda *names: None)
    monkeypatch.delenv("CXX", raising=False)
    answer = ask()
    lines = dict(line.split(": ", 1) for line in answer.stdout.splitlines())
    assert lines["onnxruntime"] == "not installed: pip install 'upsnet-trt[onnxruntime]'"
    assert lines["kernels"] == f"function bodies (onnxruntime is {lines['onnxruntime']})"
    assert (lines["compiler"], lines["cmake"]) == ("not found", "not found; with neither make nor ninja")
    monkeypatch.setenv("CXX", "/nowhere/g++ -m64")
    assert "compiler: /nowhere/g++ -m64 does not run: [Errno 2] No such file" in ask().stdout
    monkeypatch.setenv("CXX", 'g++ "')
    assert 'compiler: g++ " does not run: No closing quotation' in ask().stdout
