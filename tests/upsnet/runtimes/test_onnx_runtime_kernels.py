"""A session without the compiled kernels: the file's own bodies serve, and one line says why."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.upsnet.kernels.test_choice import make_library
from tests.upsnet.kernels.test_choice import plain_environment as plain_environment
from upsnet.errors import InputError
from upsnet.kernels.choice import NONE, kernel_abi
from upsnet.runtimes import onnx_runtime
from upsnet.runtimes.onnx_runtime import open_session, open_with_kernels

onnx = pytest.importorskip("onnx")


def write_model(path: Path, domain: str = "upsnet") -> Path:
    """y = x + x, in a function of that domain."""
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(domain, 1)]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [None]) for name in "xy")
    body = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    function = onnx.helper.make_function(domain, "Twice", ["x"], ["y"], body, opsets[:1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Twice", ["x"], ["y"], domain=domain)], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10), path)
    return path


def twice(session: onnx_runtime.ort.InferenceSession) -> list[float]:
    (found,) = session.run(["y"], {"x": np.array([1, 2], np.float32)})
    return found.tolist()


def test_a_library_that_onnx_runtime_does_not_take(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    model, library = write_model(tmp_path / "model.onnx"), make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    for _ in range(2):
        session, kernels = open_with_kernels(model)
        assert twice(session) == [2, 4]
        assert kernels.library is None and not kernels.is_meant
    (said,) = caplog.messages
    assert f"does not take {library}: " in said and "RegisterCustomOps" in said


def test_a_library_that_does_not_run_this_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A node that its kernel refuses, as one of a newer file would be."""
    caplog.set_level(logging.WARNING, "upsnet")
    model, library = write_model(tmp_path / "model.onnx"), make_library(tmp_path / "made", kernel_abi())
    monkeypatch.setenv("UPSNET_OPERATORS", str(library.parent))
    plain = onnx_runtime.session_options

    def options(
        threads: int | None = None, library: Path | None = None, model: Path | None = None
    ) -> onnx_runtime.ort.SessionOptions:
        made = plain(threads)
        if library is not None:
            made.optimized_model_filepath = "/no/such/folder/model.onnx"  # ends the session's start
        return made

    monkeypatch.setattr(onnx_runtime, "session_options", options)
    session, kernels = open_with_kernels(model)
    assert twice(session) == [2, 4]
    assert kernels.reason.startswith(f"{library} does not run this model: ")
    (said,) = caplog.messages
    assert kernels.reason in said


def test_switched_off_and_not_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, "upsnet")
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))  # nothing is there
    session, kernels = open_with_kernels(write_model(tmp_path / "model.onnx"), kernels="off")
    assert twice(session) == [2, 4] and str(kernels) == "function bodies (UPSNET_KERNELS=off)"
    session, kernels = open_with_kernels(write_model(tmp_path / "other.onnx", domain="elsewhere"))
    assert twice(session) == [2, 4] and kernels == NONE
    assert not caplog.messages


def test_a_damaged_model_is_the_models_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UPSNET_OPERATORS", str(tmp_path))
    model = write_model(tmp_path / "model.onnx")
    model.write_bytes(model.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        open_session(model)
    with pytest.raises(InputError, match="kernels=none: use auto or off"):
        open_session(model, kernels="none")
