"""Which nodes of an exported graph compute features, and which of them decide something.

A layer (a node with weights) reads features and gives features; a node decides where what it gives reaches the graph's
outputs, RoIs or the offsets of a deformable convolution without going through another layer first: scores, boxes,
logits, offsets. Features can be rounded to eight bits, decisions stay float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm")
BETWEEN = ("Relu", "Add", "MaxPool", "Resize")  # runs on the eight bits that the layers around it give and read
DEFORMABLE = ("DeformConv2d", "ModulatedDeformConv2d")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
MOVING = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Slice")  # gives the numbers that it reads
POOLED_LEVELS = 4  # RoiAlignFpn's first inputs are P2..P5, its last the RoIs


def feature_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of LAYERS, with constant weights, and BETWEEN that compute features, in the graph's order."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    deciding = _deciding(graph)
    return [
        node
        for node in graph.node
        if node.op_type in (*LAYERS, *BETWEEN)
        and node.output[0] not in deciding
        and kinds.get(node.output[0]) in FLOATS
        and _is_of_features(node, constants)
    ]


def _is_of_features(node: onnx.NodeProto, constants: set[str]) -> bool:
    """A layer's weights are constants, an Add's terms are not: one of a constant is a part of a normalisation."""
    if node.op_type == "Add":
        return constants.isdisjoint(node.input)
    return node.op_type in BETWEEN or node.input[1] in constants


def features_of(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[str]:
    """The tensors that nodes read and give, each once; not their weights."""
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, None] = {}
    for node in nodes:
        read = node.input if node.op_type == "Add" else node.input[:1]
        names |= dict.fromkeys(name for name in (*read, *node.output[:1]) if name not in weights)
    return list(names)


def readers_of(features: Collection[str], graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Every node that computes with `features`, by its name, and the features that it reads, also through MOVING.

    Not those that hand features on: Relu, MaxPool, Resize. Their features are looked at where they are read.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    sources = {name: [name] for name in features}
    found = {}
    for node in graph.node:
        read = list(dict.fromkeys(source for name in node.input for source in sources.get(name, [])))
        if not read or kinds.get(node.output[0]) != onnx.TensorProto.FLOAT:
            continue
        if node.op_type in MOVING:
            sources.setdefault(node.output[0], read)
        elif node.op_type not in BETWEEN or node.op_type == "Add":
            found[node.name] = read
    return found


def _deciding(graph: onnx.GraphProto) -> set[str]:
    """The tensors that decide."""
    readers = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    deciding = {output.name for output in graph.output}
    for node in reversed(graph.node):  # in topological order, as every graph: readers are looked at before
        for name in node.output:
            if any(_decides(reader, place, deciding) for reader, place in readers[name]):
                deciding.add(name)
    return deciding


def _decides(reader: onnx.NodeProto, place: int, deciding: set[str]) -> bool:
    """Whether what `reader` reads at its input number `place` decides."""
    if reader.op_type == "MatMul":  # the mask head's last layer: features by the weights of the RoI's class
        return False
    if reader.op_type in (*LAYERS, *DEFORMABLE):
        return place > 0
    if reader.op_type == "RoiAlignFpn" and place >= POOLED_LEVELS:
        return True
    return reader.op_type != "Shape" and any(name in deciding for name in reader.output)
