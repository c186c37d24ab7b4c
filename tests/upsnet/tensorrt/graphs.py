"""A small graph with the contract's inputs and outputs, whose answers are easily told from its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import CATEGORIES
from upsnet.categories import Categories
from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

PLUGIN = "AllRows"  # a node that needs a plugin


def manifest(max_batch: int = 4) -> Manifest:
    return Manifest(
        name="small",
        categories=list(Categories.from_coco(CATEGORIES)),
        resize=ResizeRule(short_side=64, max_side=96),
        max_detections=8,
        max_batch=max_batch,
    )


def expected(batch: NetworkBatch) -> RawPrediction:
    """panoptic: the photo's red, divided by 100; segments: the scale; segment_count: 3 to 10, by the height."""
    images, sizes, scales = batch
    segments = np.broadcast_to(scales[:, None, None], (len(images), 10, 7))
    return RawPrediction(
        images[..., 0] // np.uint8(100), segments.astype(np.float32), (3 + sizes[:, 0] % 8).astype(np.int32)
    )


def write_graph(path: Path, max_batch: int = 4, images: int = TensorProto.UINT8) -> Path:
    """The ONNX file, and its manifest beside it. images: that input's type."""
    batch, hw = "batch", ["32*rows", "32*columns"]
    inputs = [
        helper.make_tensor_value_info("images", images, [batch, *hw, 3]),
        helper.make_tensor_value_info("sizes", TensorProto.INT32, [batch, 2]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [batch]),
    ]
    outputs = [
        helper.make_tensor_value_info("panoptic", TensorProto.UINT8, [batch, *hw]),
        helper.make_tensor_value_info("segments", TensorProto.FLOAT, [batch, 10, 7]),
        helper.make_tensor_value_info("segment_count", TensorProto.INT32, [batch]),
    ]
    weights = {
        "zero": np.array(0), "axis3": np.array([3]), "axis12": np.array([1, 2]),
        "hundred": np.array(100, np.int32), "shape": np.array([1, 10, 7]),
        "eight": np.array(8, np.int32), "three": np.array(3, np.int32),
    }  # fmt: skip
    plugin = [("plugin_version", "1"), ("plugin_namespace", "")]
    nodes = [
        helper.make_node("Gather", ["images", "zero"], ["red"], "red", axis=3),
        helper.make_node("Cast", ["red"], ["red32"], "wide", to=TensorProto.INT32),
        helper.make_node("Div", ["red32", "hundred"], ["parts"], "divide"),
        helper.make_node("Cast", ["parts"], ["panoptic"], "narrow", to=TensorProto.UINT8),
        helper.make_node("Unsqueeze", ["scales", "axis12"], ["scale3"], "deep"),
        helper.make_node("Expand", ["scale3", "shape"], ["rows"], "spread"),
        helper.make_node(PLUGIN, ["rows"], ["segments"], "all_rows", domain="upsnet", **dict(plugin)),
        helper.make_node("Gather", ["sizes", "zero"], ["height"], "height", axis=1),
        helper.make_node("Mod", ["height", "eight"], ["rest"], "rest"),
        helper.make_node("Add", ["rest", "three"], ["segment_count"], "count"),
    ]
    body = helper.make_function(
        "upsnet", PLUGIN, ["rows"], ["same"], [helper.make_node("Identity", ["rows"], ["same"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("upsnet", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    described = manifest(max_batch)
    helper.set_model_props(model, {METADATA_KEY: described.model_dump_json()})
    onnx.save(model, path)
    described.save(manifest_path(path))
    return path


def make_batch(size: int, height: int = 64, width: int = 96, seed: int = 0) -> NetworkBatch:
    random = np.random.default_rng(seed)
    return NetworkBatch(
        random.integers(0, 256, (size, height, width, 3), np.uint8),
        np.stack([random.integers(1, height + 1, size), random.integers(1, width + 1, size)], 1).astype(np.int32),
        random.uniform(0.5, 2, size).astype(np.float32),
    )
