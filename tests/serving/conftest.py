"""A stand-in model with the exported graph's inputs and outputs, small enough to check by hand, and a server on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.repository import deploy
from serving.server import TritonServer
from upsnet.categories import Category
from upsnet.contract import METADATA_KEY
from upsnet.files import sha256
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes.predictor import RawPrediction

ROWS = np.arange(21, dtype=np.float32).reshape(1, 3, 7)
ROWS[..., 0] = 0, 1, 1  # the category
COLUMNS = np.array([0, 1, 1, 1, 1, 1, 1], np.float32)
POISON = 1e6  # a scale above this makes the stand-in fail inside ONNX Runtime
OUTPUTS = ("panoptic", "segments", "segment_count")


def stand_in(path: Path, manifest: Manifest) -> None:
    """With m = (h + w) * scale: panoptic = red > 127, segment_count = 1 + int(m) mod 3, segments = ROWS + m * COLUMNS.

    panoptic comes from a model-local function, as the exported graph's operators do.
    """
    constants = {
        "threshold": np.uint8(127),
        "poison": np.float32(POISON),
        "zero": np.int64(0),
        "axis": np.array([1], np.int64),
        "axes": np.array([1, 2], np.int64),
        "rows": ROWS,
        "columns": COLUMNS,
        "int_one": np.int32(1),
        "int_three": np.int32(3),
        "one": np.ones(1, np.float32),
    }
    nodes = [
        helper.make_node("Threshold", ["images", "zero", "threshold"], ["panoptic"], domain="standin"),
        helper.make_node("Cast", ["sizes"], ["sizes_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["sizes_float", "axis"], ["sums"], keepdims=0),
        helper.make_node("Greater", ["scales", "poison"], ["poisoned"]),
        helper.make_node("Cast", ["poisoned"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "index"], ["ones"]),  # index 1 of one element: an error at run time
        helper.make_node("Mul", ["scales", "ones"], ["checked"]),
        helper.make_node("Mul", ["sums", "checked"], ["m"]),
        helper.make_node("Cast", ["m"], ["m_int"], to=TensorProto.INT32),
        helper.make_node("Mod", ["m_int", "int_three"], ["rest"]),
        helper.make_node("Add", ["rest", "int_one"], ["segment_count"]),
        helper.make_node("Unsqueeze", ["m", "axes"], ["m3"]),
        helper.make_node("Mul", ["m3", "columns"], ["added"]),
        helper.make_node("Add", ["added", "rows"], ["segments"]),
    ]
    threshold = helper.make_function(
        "standin",
        "Threshold",
        ["x", "channel", "limit"],
        ["y"],
        [
            helper.make_node("Gather", ["x", "channel"], ["red"], axis=3),
            helper.make_node("Greater", ["red", "limit"], ["above"]),
            helper.make_node("Cast", ["above"], ["y"], to=TensorProto.UINT8),
        ],
        [helper.make_opsetid("", 18)],
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "standin",
        [
            value("images", TensorProto.UINT8, ["B", "H", "W", 3]),
            value("sizes", TensorProto.INT32, ["B", 2]),
            value("scales", TensorProto.FLOAT, ["B"]),
        ],
        [
            value("panoptic", TensorProto.UINT8, ["B", "H", "W"]),
            value("segments", TensorProto.FLOAT, ["B", 3, 7]),
            value("segment_count", TensorProto.INT32, ["B"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("standin", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[threshold], ir_version=10)
    model.metadata_props.add(key=METADATA_KEY, value=manifest.model_dump_json())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class Exported:
    """The stand-in's files, and what it answers in this process."""

    def __init__(self, folder: Path) -> None:
        self.model, self.manifest_path = folder / "model.onnx", folder / "model.manifest.json"
        things = [
            Category(id=1, name="sky", isthing=False, color=(0, 0, 255)),
            Category(id=2, name="cat", isthing=True, color=(9, 9, 9)),
        ]
        rule = ResizeRule(short_side=64, max_side=128)
        inside = Manifest(name="standin", categories=things, resize=rule, max_detections=2)
        stand_in(self.model, inside)
        self.manifest = inside.model_copy(update={"onnx_sha256": sha256(self.model)})
        self.manifest.save(self.manifest_path)
        self.session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        return RawPrediction(*self.session.run(OUTPUTS, batch._asdict()))


def make_request(batch: int, height: int, width: int, seed: int = 0) -> NetworkBatch:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    sizes = np.stack([rng.integers(1, height + 1, batch), rng.integers(1, width + 1, batch)], axis=1)
    return NetworkBatch(images, sizes.astype(np.int32), rng.uniform(0.25, 2, batch).astype(np.float32))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Path:
    return deploy(exported.model, exported.manifest_path, tmp_path / "repository")


@pytest.fixture(scope="session")
def server(
    exported: Exported, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """One server for all tests that leave it alive."""
    folder = tmp_path_factory.mktemp("triton")
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    with TritonServer(repository, environment=triton_environment, http_port=0, log=folder / "triton.log") as running:
        yield running
