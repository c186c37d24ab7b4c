"""Names of the exported graph's contract; whoever only runs a model needs no more than these."""

from __future__ import annotations

from pathlib import Path

INPUTS = ["images", "sizes", "scales"]
OUTPUTS = ["panoptic", "segments", "segment_count"]
PLUGINS = "libupsnet_plugins.so"  # a TensorRT plan's custom operators
METADATA_KEY = "upsnet.manifest"  # of the manifest: in the ONNX file, and in the configuration of a Triton model
MODEL = "upsnet"  # the name that Triton serves it under


def manifest_path(model: Path) -> Path:
    """The manifest that goes with an ONNX file: model.onnx -> model.manifest.json beside it."""
    return model.with_suffix(".manifest.json")
