"""Fixtures of TensorRT's tests. Their fakes need the package onnx, which a client may not have."""

from __future__ import annotations

import importlib.util

collect_ignore: list[str] = []
if importlib.util.find_spec("onnx") is None:
    collect_ignore = ["test_tensorrt.py", "test_tensorrt_lifetime.py", "test_tensorrt_refusals.py"]
else:
    from tests.upsnet.tensorrt.engines import make as make
    from tests.upsnet.tensorrt.engines import predictor as predictor
    from tests.upsnet.tensorrt.engines import world as world
