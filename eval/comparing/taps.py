"""Where an exported graph holds what its modules give, so that it can be made an output of the graph.

The exporter notes the module that it traced a node in, and names weights after modules. Custom operators are nodes
whose inputs are places of the network, too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import onnx

from eval.comparing.boundaries import (
    BLOCK,
    BOX_DELTAS,
    BOX_LOGITS,
    LEVELS,
    PHOTO,
    PYRAMID,
    SEMANTIC,
    STAGES,
    STEM,
    STEMS,
)
from eval.profiling.graph import PANOPTIC, POOLING, SCOPES

ANCHORS = "BestAnchors"
RPN_MAPS = [f"rpn {level}" for level in PYRAMID]
BOXES = "proposal boxes"
FOUND = ("boxes", "labels", "scores", "masks", "counts")  # of the detections, as PanopticFusion reads them
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class Tapped:
    """A graph, searched for the tensors behind each place."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def find(self, blocks: bool = False) -> dict[str, str]:
        """Tensors by the place, or the part of one, that they hold; places that the graph does not show are left out.

        blocks: also every block of the backbone's stages.
        """
        found = dict(self._features()) | dict(self._operators())
        if blocks:
            names = dict.fromkeys(scope for node in self.graph.node for scope in scopes(node) if BLOCK.fullmatch(scope))
            found |= {name: tensor for name in names if (tensor := self._output(name))}
        return found

    def _features(self) -> Iterator[tuple[str, str]]:
        photo = next((node.input[0] for node in self.graph.node if _is_in(node, "backbone") and _is_layer(node)), None)
        stem = next((tensor for name in STEMS if (tensor := self._output(name))), None)
        yield from ((name, tensor) for name, tensor in ((PHOTO, photo), (STEM, stem)) if tensor)
        for index, name in enumerate(STAGES):
            reader = f"fpn.lateral.{index}"
            if tensor := next((n.input[0] for n in self.graph.node if _is_in(n, reader) and _is_layer(n)), None):
                yield name, tensor
        for index, name in enumerate(PYRAMID[:-1]):
            if tensor := self._output(f"fpn.smooth.{index}"):
                yield name, tensor
        top = [node for node in self.graph.node if node.op_type == "MaxPool" and _is_in(node, "fpn")]
        if top:
            yield PYRAMID[-1], self._as_read(top[-1].output[0])
        for part, name in ((BOX_LOGITS, "box_head.logits"), (BOX_DELTAS, "box_head.deltas")):
            if tensor := self._output(name):
                yield part, tensor

    def _operators(self) -> Iterator[tuple[str, str]]:
        for node in self.graph.node:
            if node.op_type == ANCHORS:
                yield from zip(RPN_MAPS, node.input[:LEVELS], strict=True)
            elif node.op_type == PANOPTIC:
                yield SEMANTIC, node.input[0]
                yield from zip(FOUND, node.input[1:6], strict=True)
        pools = [node for node in self.graph.node if node.op_type == POOLING]
        if pools:
            yield BOXES, pools[0].input[-1]

    def _output(self, module: str) -> str | None:
        """What a module gives to others: of its floating-point values, the last."""
        nodes = [node for node in self.graph.node if _is_in(node, module) and node.op_type not in ("Shape", "Squeeze")]
        return self._as_read(nodes[-1].output[0]) if nodes else None

    def _as_read(self, tensor: str) -> str:
        """Where a value is read in fewer bits alone, those: what QuantizeLinear and DequantizeLinear make of it."""
        readers = self.readers[tensor]
        if readers and all(node.op_type == "QuantizeLinear" for node in readers):
            then = self.readers[readers[0].output[0]]
            if then and then[0].op_type == "DequantizeLinear":
                return then[0].output[0]
        return tensor


def scopes(node: onnx.NodeProto) -> list[str]:
    """The modules in whose `forward` the exporter traced the node, from the outermost in; their paths."""
    entry = next((each.value for each in node.metadata_props if each.key == SCOPES), "[]")
    return re.findall(r"'([\w.]+)'", entry)[:-1]


def _is_in(node: onnx.NodeProto, module: str) -> bool:
    """By the exporter's note, or by a weight of that module."""
    return module in scopes(node) or any(name.startswith(f"{module}.") for name in node.input)


def _is_layer(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "DeformConv2d", "ModulatedDeformConv2d")


def with_outputs(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The model, changed in place: those tensors are outputs, too, of their types where the file tells them."""
    own = {each.name for each in model.graph.output}
    known = {each.name: each for each in model.graph.value_info}
    for name in dict.fromkeys(tensors):
        if name not in own:
            model.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return model
