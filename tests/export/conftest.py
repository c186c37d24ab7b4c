"""The tiny run in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_half(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of tiny_run's checkpoint, --precision fp16."""
    from export.onnx_export import export_onnx

    model = tmp_path_factory.mktemp("half") / "model.onnx"
    export_onnx(tiny_run / "last.safetensors", model, "fp16")
    return model
