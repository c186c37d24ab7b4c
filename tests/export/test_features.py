"""Which nodes of a graph may be rounded to eight bits: features, and nothing that decides."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx.helper import make_graph, make_node, make_tensor_value_info

from export.features import feature_nodes, features_of, readers_of

FLOAT = onnx.TensorProto.FLOAT


def graph_of(nodes: list[onnx.NodeProto], outputs: list[str], weights: str = "w") -> onnx.GraphProto:
    """A graph of `nodes` from x to outputs, all its tensors float32, `w` the weights of every layer."""
    values = [make_tensor_value_info(name, FLOAT, None) for node in nodes for name in node.output]
    given = [make_tensor_value_info("x", FLOAT, None)]
    ends = [value for value in values if value.name in outputs]
    weight = onnx.helper.make_tensor(weights, FLOAT, [1, 1, 1, 1], [1.0])
    return make_graph(nodes, "graph", given, ends, [weight], value_info=values)


def outputs_of(graph: onnx.GraphProto) -> list[str]:
    return [node.output[0] for node in feature_nodes(graph)]


def test_the_last_layer_decides() -> None:
    nodes = [
        make_node("Conv", ["x", "w"], ["a"]),
        make_node("Relu", ["a"], ["b"]),
        make_node("Conv", ["b", "w"], ["logits"]),
        make_node("Softmax", ["logits"], ["scores"]),
    ]
    assert outputs_of(graph_of(nodes, ["scores"])) == ["a", "b"]


def test_what_goes_both_ways_decides() -> None:
    """The sum is read by a layer, and given out too."""
    nodes = [
        make_node("Conv", ["x", "w"], ["a"]),
        make_node("Conv", ["a", "w"], ["b"]),
        make_node("Add", ["a", "b"], ["sum"]),
        make_node("Conv", ["sum", "w"], ["c"]),
        make_node("Relu", ["sum"], ["d"]),
    ]
    assert outputs_of(graph_of(nodes, ["c", "d"])) == []
    assert outputs_of(graph_of(nodes[:4], ["c"])) == ["a", "b", "sum"]


@pytest.mark.parametrize(
    ("reader", "place", "decides"),
    [
        ("DeformConv2d", 0, False),
        ("DeformConv2d", 1, True),  # its offsets
        ("RoiAlignFpn", 3, False),
        ("RoiAlignFpn", 4, True),  # its RoIs
        ("Shape", 0, False),
        ("Conv", 1, True),  # weights that are computed
    ],
)
def test_the_place_where_it_is_read_counts(reader: str, place: int, decides: bool) -> None:
    read = ["x"] * 5
    read[place] = "a"
    domain = "upsnet" if reader in ("DeformConv2d", "RoiAlignFpn") else ""
    nodes = [
        make_node("Conv", ["x", "w"], ["a"]),
        make_node(reader, read, ["b"], domain=domain),
        make_node("Conv", ["b", "w"], ["c"]),
    ]
    assert outputs_of(graph_of(nodes, ["c"])) == ([] if decides else ["a"])


def test_features_are_named_once_and_without_weights() -> None:
    nodes = [
        make_node("Conv", ["x", "w"], ["a"]),
        make_node("Add", ["a", "x"], ["b"]),
        make_node("Conv", ["b", "w"], ["c"]),
    ]
    graph = graph_of(nodes, ["c"])
    assert features_of(feature_nodes(graph), graph) == ["x", "a", "b"]


def test_readers_compute_with_features_wherever_these_are_moved() -> None:
    nodes = [
        make_node("Conv", ["x", "w"], ["a"], name="layer"),
        make_node("Relu", ["a"], ["b"], name="hands it on"),
        make_node("Reshape", ["b", "shape"], ["c"], name="moves it"),
        make_node("MatMul", ["c", "x"], ["d"], name="reader"),
        make_node("Softmax", ["d"], ["e"], name="reads no feature"),
    ]
    assert readers_of(["a", "b"], graph_of(nodes, ["e"])) == {"reader": ["b"]}


def test_the_network(tiny_run: Path) -> None:
    """By the names of the weights: every layer that gives logits, deltas or offsets decides, and no other."""
    graph = onnx.load(tiny_run / "model.onnx").graph
    rounded = {node.output[0] for node in feature_nodes(graph)}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    named = {name: node.output[0] in rounded for node in layers if (name := node.input[1]).endswith(".weight")}
    last = ("conv_offset.weight", "logits.weight", "deltas.weight", "score.weight")
    assert named and all(rounded == (not name.endswith(last)) for name, rounded in named.items()), named
