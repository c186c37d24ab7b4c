"""The fakes need the package onnx, which a client may not have."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("onnx") else ["test_fakes.py"]
