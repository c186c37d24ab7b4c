"""Which module of the network a node belongs to, in any graph that was made of an exported one.

The exporter names weights after their modules and notes where it traced each node. ONNX Runtime's optimisation drops
the notes, renames and fuses nodes and brings weights into forms of its own, but values keep their names. So the modules
are found in the file, and carried to the graph that ran by the values; what has no name of its own stands where its
data come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx

from eval.profiling.trace import Tensor

# In the order in which data pass them; a node that reads two of them belongs to the later one.
MODULES = ("backbone", "fpn", "semantic_head", "rpn", "box_head", "mask_head", "panoptic_head")
TITLES = {
    "backbone": "backbone", "fpn": "FPN", "semantic_head": "semantic head", "rpn": "RPN", "box_head": "box head",
    "mask_head": "mask head", "panoptic_head": "panoptic head",
}  # fmt: skip
PANOPTIC = "PanopticFusion"
POOLING = "RoiAlignFpn"  # reads the boxes of one module for the next
INLINED = "_inlfunc_"  # ONNX Runtime's, before the name of the function that a node comes from
BLOCKED = "_nchwc"  # a convolution in blocks of channels is named after the value that it makes
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's: "['', 'backbone', 'backbone.stem.0', ...]"
UNKNOWN = -1
TYPES = {
    onnx.TensorProto.FLOAT: "float", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.DOUBLE: "double",
    onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64", onnx.TensorProto.BOOL: "bool", onnx.TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


class Place(NamedTuple):
    """A node of the graph that ran: its module, and the weights among its inputs by their place there."""

    node: onnx.NodeProto
    module: str  # one of MODULES; "" in a network that has none of them
    weights: dict[int, Tensor]


class Graph:
    """The graph that ran (`ran`), as ONNX Runtime wrote it, of the model `given`."""

    def __init__(self, ran: onnx.ModelProto, given: onnx.ModelProto) -> None:
        values = value_modules(given.graph)
        modules = node_modules(ran.graph, values)
        self._places = dict(_places(ran.graph, (), {}, modules))

    def find(self, path: tuple[str, ...]) -> Place | None:
        """The node of an execution; None for one that is not in the file."""
        *above, name = path  # the profile calls a node without a name by its operator and a number
        return self._places.get(path) or self._places.get((*above, name.rpartition("_")[0]))


def _places(
    graph: onnx.GraphProto, above: tuple[str, ...], weights: dict[str, Tensor], modules: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Every node, and those of its body in its module, by the names on the way to it."""
    own = {each.name: Tensor(TYPES.get(each.data_type, ""), tuple(each.dims)) for each in graph.initializer}
    weights = weights | own
    for node, module in zip(graph.node, modules, strict=True):
        path = (*above, node.name or node.op_type)
        inputs = {place: weights[name] for place, name in enumerate(node.input) if name in weights}
        yield path, Place(node, module, inputs)
        for body in _bodies(node):
            yield from _places(body, path, weights, [module] * len(body.node))


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def value_modules(graph: onnx.GraphProto) -> dict[str, str]:
    """The module of every value that a node of the graph makes."""
    modules = zip(graph.node, node_modules(graph, {}), strict=True)
    return {output: module for node, module in modules for output in node.output if output}


def node_modules(graph: onnx.GraphProto, known: Mapping[str, str]) -> list[str]:
    """The module of every node, "" in a network that has none of ours. known: of values, as far as it is certain."""
    weights = {each.name: _module_of_weight(each.name) for each in graph.initializer}
    stages: dict[str, int] = {}  # of values
    calls: dict[str, str] = {}  # of the pooling that makes a value: the name of the call
    boxes: dict[str, int] = {}  # of such a call: where what it reads comes from
    places = []
    for node in graph.node:
        call = _pooling(node)
        stage = max((stages.get(name, UNKNOWN) for name in _reads(node) if calls.get(name) != call), default=UNKNOWN)
        made = [*node.output, node.name.removesuffix(BLOCKED)]
        certain = [known[name] for name in made if name in known] or scope(node)
        if call:
            boxes[call] = max(stage, boxes.get(call, UNKNOWN))
            stage = _after(boxes[call])
            calls |= dict.fromkeys(node.output, call)
        elif certain:
            stage = MODULES.index(certain[0]) if certain[0] else UNKNOWN
        elif _is_panoptic(node):
            stage = MODULES.index("panoptic_head")
        else:
            stage = max([stage, *(weights.get(name, UNKNOWN) for name in node.input)])
        places.append(stage)
        stages |= dict.fromkeys(node.output, stage)
    # What comes before every weight, as the anchors' arithmetic, is for the first that reads it.
    readers: dict[str, int] = {}
    for index, node in reversed(list(enumerate(graph.node))):
        if call := _pooling(node):
            places[index] = _after(boxes[call])
        if places[index] == UNKNOWN:
            places[index] = min((readers[name] for name in node.output if name in readers), default=UNKNOWN)
        if places[index] != UNKNOWN:
            readers |= {name: min(places[index], readers.get(name, len(MODULES))) for name in _reads(node)}
    return ["" if stage == UNKNOWN else MODULES[stage] for stage in places]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, its body included."""
    names = set(filter(None, node.input))
    for body in _bodies(node):
        names |= {name for inner in body.node for name in _reads(inner)}
    return names


def scope(node: onnx.NodeProto) -> list[str]:
    """The module whose `forward` the exporter traced it in, if it has left word of one of ours."""
    entry = next((each.value for each in node.metadata_props if each.key == SCOPES), "[]")
    return [name for name in re.findall(r"'(\w+)'", entry) if name in MODULES]


def _is_panoptic(node: onnx.NodeProto) -> bool:
    return node.op_type == PANOPTIC or node.name.startswith(INLINED + PANOPTIC)


def _pooling(node: onnx.NodeProto) -> str:
    """The call of the pooling operator that a node is, or is inlined from; "" for others."""
    if node.op_type == POOLING:
        return node.name
    return node.name.rpartition("_n")[0] if node.name.startswith(INLINED + POOLING) else ""


def _after(stage: int) -> int:
    """The module that pools with boxes from there."""
    return MODULES.index("mask_head" if stage >= MODULES.index("box_head") else "box_head")


def _module_of_weight(name: str) -> int:
    first = name.partition(".")[0]
    return MODULES.index(first) if first in MODULES else UNKNOWN
