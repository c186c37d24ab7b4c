"""The fake TensorRT's plan: what it was built for, and the ONNX file that runs in its place."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx

MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
HEADER = 64  # bytes: the magic, at 16 the size of all, at 24 the version, at 32 RTX's compute capabilities as bits
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # bit 0 first; without any named, all of them
ELEMENTS = {
    1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8", 17: "FP8",
}  # fmt: skip  # of onnx.TensorProto
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
         "BOOL": np.bool_, "UINT8": np.uint8}  # fmt: skip
LAYERS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Cast": "CAST", "Softmax": "SOFTMAX",
    "Relu": "ACTIVATION", "Sigmoid": "ACTIVATION", "Clip": "ACTIVATION", "MaxPool": "POOLING",
    "Concat": "CONCATENATION",
    "Exp": "UNARY", "Resize": "RESIZE", "TopK": "TOPK", "Gather": "GATHER", "GatherND": "GATHER", "Slice": "SLICE",
    "GatherElements": "GATHER", "ReduceSum": "REDUCE", "ReduceMax": "REDUCE", "Where": "SELECT", "Shape": "SHAPE",
    "Reshape": "SHUFFLE", "Transpose": "SHUFFLE", "Unsqueeze": "SHUFFLE", "Squeeze": "SHUFFLE", "Range": "FILL",
    "Constant": "CONSTANT", "Identity": "IDENTITY",
}  # fmt: skip


@dataclass
class Tensor:
    """shape: numbers, and names where it is dynamic."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass
class Layer:
    name: str
    kind: str  # of LayerType
    inputs: list[Tensor]
    outputs: list[Tensor]
    plugin: str | None = None


@dataclass
class Plan:
    package: str  # tensorrt or tensorrt_rtx
    version: str
    capability: list[int]  # of the GPU that it was built on or for
    capabilities: list[str]  # RTX: SM89; empty: those that it supports
    hardware: str
    flags: list[str]
    verbosity: str
    profiles: list[dict[str, list[list[int]]]]
    inputs: list[Tensor]
    outputs: list[Tensor]
    layers: list[Layer]
    onnx: bytes = field(repr=False, default=b"")

    @property
    def plugins(self) -> list[str]:
        return sorted({layer.plugin for layer in self.layers if layer.plugin})

    def to_bytes(self) -> bytes:
        facts = {key: value for key, value in asdict(self).items() if key != "onnx"}
        facts_json = json.dumps(facts).encode()
        body = struct.pack("<II", len(facts_json), len(self.onnx)) + facts_json + self.onnx
        named = self.capabilities or CAPABILITIES if self.package == "tensorrt_rtx" else ()
        bits = sum(1 << number for number, each in enumerate(CAPABILITIES) if each in named)
        version = bytes(int(each) for each in self.version.split("."))
        size = HEADER + 32 + len(body)
        head = MAGIC[self.package].ljust(16, b"\0") + struct.pack("<Q4s4xI", size, version, bits)
        return head.ljust(HEADER, b"\0") + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """ValueError where it is none, or is damaged."""
        if data[:4] not in MAGIC.values():
            raise ValueError("magicTagRead == kMAGIC_TAG")
        body = data[HEADER + 32 :]
        if hashlib.sha256(body).digest() != data[HEADER : HEADER + 32]:
            raise ValueError("size and checksum of the plan's header")
        length, size = struct.unpack("<II", body[:8])
        facts = json.loads(body[8 : 8 + length])
        for key in ("inputs", "outputs"):
            facts[key] = [Tensor(**each) for each in facts[key]]
        facts["layers"] = [
            Layer(**(each | {key: [Tensor(**one) for one in each[key]] for key in ("inputs", "outputs")}))
            for each in facts["layers"]
        ]
        return cls(**facts, onnx=body[8 + length : 8 + length + size])


def tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    shape: list[int | str] = [each.dim_param or int(each.dim_value) for each in kind.shape.dim]
    return Tensor(info.name, ELEMENTS.get(kind.elem_type, "FLOAT"), shape)


def network_layers(model: onnx.ModelProto) -> list[Layer]:
    """One for each node; those that TensorRT makes from one are not counted apart."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {each.name: tensor(each) for each in [*graph.value_info, *graph.input, *graph.output]}
    for each in graph.initializer:
        known[each.name] = Tensor(each.name, ELEMENTS.get(each.data_type, "FLOAT"), list(each.dims))

    def of(names: Any) -> list[Tensor]:
        return [known.get(name) or Tensor(name, "FLOAT", []) for name in names if name]

    weights = {each.name for each in graph.initializer}
    return [
        Layer(
            name=node.name or f"{node.op_type}_{number}",
            kind="PLUGIN_V3" if is_plugin(node) else LAYERS.get(node.op_type, "ELEMENTWISE"),
            # as TensorRT: a layer's weights are none of its inputs, but those that are stored in eight bits
            inputs=of(name for name in node.input if keeps(node) or name not in weights),
            outputs=of(node.output),
            plugin=node.op_type if is_plugin(node) else None,
        )
        for number, node in enumerate(graph.node)
    ]


def keeps(node: onnx.NodeProto) -> bool:
    """Whether a layer's constants are inputs of it."""
    return is_plugin(node) or node.op_type == "DequantizeLinear"


def is_plugin(node: onnx.NodeProto) -> bool:
    return any(each.name == "plugin_namespace" for each in node.attribute)
