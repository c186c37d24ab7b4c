"""A small Panoptic FPN as an ONNX file: what stays float32 in it, what eight bits leave alone, and that it is the same
network."""

from __future__ import annotations

import onnx
import pytest

from export.features import LAYERS, feature_nodes
from export.modules import modules_of, scope_of
from export.onnx_export import to_model_proto
from export.precision import prepare
from export.quantization import fold
from tests.export.agreement import assert_onnx_runtime_agrees
from tests.training.tiny_network import panoptic_fpn
from training.model.upsnet import UPSNet
from upsnet.geometry import ResizeRule
from upsnet.manifest import Precision

pytestmark = pytest.mark.numeric

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
FLOATS = (FLOAT, HALF, onnx.TensorProto.BFLOAT16)
LINKS = [f"semantic_head.chains.{level}.{i}" for level in range(4) for i in range(max(1, level))]


@pytest.fixture(scope="module")
def network() -> UPSNet:
    return panoptic_fpn()


def traced(network: UPSNet, precision: Precision) -> onnx.ModelProto:
    return to_model_proto(prepare(network, precision), ResizeRule(short_side=64, max_side=96))


@pytest.fixture(scope="module")
def full(network: UPSNet) -> onnx.ModelProto:
    return traced(network, "fp32")


@pytest.fixture(scope="module")
def half(network: UPSNet) -> onnx.ModelProto:
    return traced(network, "fp16")


def kinds_of(graph: onnx.GraphProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in graph.value_info}


def test_group_norm_is_float32_in_a_half_file(half: onnx.ModelProto) -> None:
    kinds, graph = kinds_of(half.graph), half.graph
    for link in LINKS:
        own = [node for node in graph.node if scope_of(node) == f"{link}.norm"]
        computed = [node for node in own if kinds.get(node.output[0]) in FLOATS and node.op_type != "Cast"]
        assert {"ReduceSum", "Sub", "Mul", "Add"} <= {node.op_type for node in computed}
        assert {kinds[node.output[0]] for node in computed} == {FLOAT}
        (conv,) = (node for node in graph.node if node.op_type == "Conv" and scope_of(node) == f"{link}.conv")
        assert kinds[conv.output[0]] == HALF
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kind for name, kind in weights.items() if name.startswith("semantic_head") and ".norm." in name} <= {FLOAT}


def test_eight_bits_leave_the_normalisation_alone(full: onnx.ModelProto) -> None:
    """The convolutions may have them; what they give to scores may not."""
    model = onnx.ModelProto()
    model.CopyFrom(full)
    fold(model)
    found = feature_nodes(model.graph)
    assert not [node.name for node in found if scope_of(node).endswith(".norm")]
    layers = {scope_of(node) for node in found if node.op_type in LAYERS}
    assert {f"{link}.conv" for link in LINKS} <= layers and "semantic_head.score" not in layers


def test_the_semantic_head_is_one_module_of_recipes(network: UPSNet) -> None:
    assert modules_of(network)["semantic_head"] == ("semantic_head",)


@pytest.mark.parametrize(("precision", "identical", "score"), [("full", 0.999, 1e-4), ("half", 0.98, 0.05)])
def test_onnx_runtime_agrees(
    precision: str, identical: float, score: float, network: UPSNet, request: pytest.FixtureRequest
) -> None:
    assert_onnx_runtime_agrees(network, request.getfixturevalue(precision), identical=identical, score=score)
