"""What is measured: the run's network at the size of real photos, one that computes next to nothing, and a photo."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from upsnet.contract import INPUTS, METADATA_KEY, OUTPUTS, manifest_path
from upsnet.files import sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest

OPSET = 18


def with_rule(model: Path, rule: ResizeRule, path: Path) -> Path:
    """The same network, told to take photos of another size; its manifest beside it."""
    proto = onnx.load(model)
    manifest = Manifest.load(manifest_path(model)).model_copy(update={"resize": rule, "onnx_sha256": ""})
    return _save(proto, manifest, path)


def trivial(like: Manifest, path: Path) -> Path:
    """A graph of the contract that answers with the first third of the image's bytes: what it takes is the way there
    and back.
    """
    rows = like.max_segments
    constants = {
        "thirds": np.array([0, 3, -1], np.int64),
        "first": np.int64(0),
        "columns": np.array([rows, 7], np.int64),
    }
    constants |= {"zero": np.zeros(1, np.float32), "one": np.ones(1, np.int32)}
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Reshape", ["images", "thirds"], ["split"]),
        make("Gather", ["split", "first"], ["bytes"], axis=1),
        make("Shape", ["images"], ["size"], end=3),
        make("Reshape", ["bytes", "size"], ["panoptic"]),
        make("Shape", ["scales"], ["batch"]),
        make("Concat", ["batch", "columns"], ["shape"], axis=0),
        make("Expand", ["zero", "shape"], ["segments"]),
        make("Expand", ["one", "batch"], ["segment_count"]),
    ]
    inputs = [
        value(INPUTS[0], TensorProto.UINT8, ["B", "H", "W", 3]),
        value(INPUTS[1], TensorProto.INT32, ["B", 2]),
        value(INPUTS[2], TensorProto.FLOAT, ["B"]),
    ]
    outputs = [
        value(OUTPUTS[0], TensorProto.UINT8, ["B", "H", "W"]),
        value(OUTPUTS[1], TensorProto.FLOAT, ["B", rows, 7]),
        value(OUTPUTS[2], TensorProto.INT32, ["B"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "trivial", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return _save(proto, like.model_copy(update={"name": "trivial", "onnx_sha256": ""}), path)


def _save(proto: onnx.ModelProto, manifest: Manifest, path: Path) -> Path:
    kept = [entry for entry in proto.metadata_props if entry.key != METADATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.model_dump_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    manifest.model_copy(update={"onnx_sha256": sha256(path)}).save(manifest_path(path))
    return path


def make_jpeg(width: int, height: int) -> bytes:
    """A photo of smooth regions and some noise, whose JPEG is about as large as a camera's."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
