"""ONNX -> TensorRT plan. One program for TensorRT and TensorRT-RTX, whose Python interfaces agree.

It runs as a process of its own (`python -m export.tensorrt_build`), since a failing parser can abort the process.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from panoptic.files import atomic_path
from panoptic.geometry import ResizeRule

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]


def optimization_profile(resize: ResizeRule, max_batch: int) -> Profile:
    """Smallest, usual (one photo of 4:3) and largest (`max_batch` of the longest side) shape of each input."""

    def padded(side: int) -> int:
        return -(-side // resize.divisor) * resize.divisor

    low = resize.divisor
    usual = (padded(resize.short_side), padded(min(resize.max_side, round(resize.short_side * 4 / 3))))
    high = padded(resize.max_side)
    return {
        "images": ((1, low, low, 3), (1, *usual, 3), (max_batch, high, high, 3)),
        "sizes": ((1, 2), (1, 2), (max_batch, 2)),
        "scales": ((1,), (1,), (max_batch,)),
    }


def build(trt: ModuleType, model: Path, plan: Path, profile: Profile) -> dict[str, Any]:
    """Parse and build. Returns {"status": "built", "bytes"} or {"status": "refused", "stage", "errors"}."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        found = sorted({f"{e.node_operator()} ({e.node_name()}): {e.desc()}" for e in errors})
        return {"status": "refused", "stage": "parser", "errors": found}
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, (low, usual, high) in profile.items():
        shapes.set_shape(name, low, usual, high)
    config.add_optimization_profile(shapes)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        return {"status": "refused", "stage": "builder", "errors": ["the builder made no engine; its log says why"]}
    with atomic_path(plan) as temporary:
        temporary.write_bytes(bytes(serialized))
    return {"status": "built", "bytes": plan.stat().st_size, "version": trt.__version__}


def main() -> None:
    """argv: module name, model, plan, profile as JSON. The result is the last line, as JSON."""
    module, model, plan, profile = sys.argv[1:]
    shapes: Profile = {name: (tuple(a), tuple(b), tuple(c)) for name, (a, b, c) in json.loads(profile).items()}
    print(json.dumps(build(importlib.import_module(module), Path(model), Path(plan), shapes)))


if __name__ == "__main__":
    main()
