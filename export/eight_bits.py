"""Numbers of eight bits: int8, and fp8 (E4M3 without infinities, Micikevicius et al., 2022); Q/DQ pairs of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx.helper import make_node, tensor_dtype_to_np_dtype
from onnx.numpy_helper import from_array, to_array

EightBits = Literal["int8", "fp8"]
Ranges = dict[str, tuple[float, float]]  # a feature's least and largest value; 0 lies between them

STORED: dict[EightBits, Any] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
LARGEST: dict[EightBits, float] = {"int8": 127, "fp8": 448}
TINY = 1e-30


def channel_axis(layer: onnx.NodeProto) -> int:
    """The axis of a layer's weights along which its output channels lie."""
    if layer.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in layer.attribute) else 1
    return 1 if layer.op_type == "ConvTranspose" else 0


def steps(largest: np.ndarray | float, kind: EightBits, dtype: Any = np.float32) -> np.ndarray:
    """The value of 1 for numbers whose largest magnitude is `largest`, as `dtype` has it, rounded up: nothing is
    clipped because of it."""
    exact = np.maximum(np.asarray(largest, np.float64) / LARGEST[kind], TINY)
    found = np.maximum(exact, np.float64(ml_dtypes.finfo(dtype).smallest_subnormal)).astype(dtype)
    return np.where(found.astype(np.float64) < exact, np.nextafter(found, np.array(np.inf, dtype)), found).astype(dtype)


def channel_steps(weight: np.ndarray, axis: int, kind: EightBits) -> np.ndarray:
    """`steps` of each output channel, in the weights' type."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    return steps(np.abs(weight.astype(np.float64)).max(axis=others), kind, weight.dtype)


def rounded(values: np.ndarray, step: np.ndarray, kind: EightBits) -> np.ndarray:
    """values / step in eight bits, half to even; what is too large becomes the largest."""
    limit = LARGEST[kind]
    scaled = np.clip(values.astype(np.float32) / np.asarray(step, np.float32), -limit, limit)
    return (np.rint(scaled) if kind == "int8" else scaled).astype(STORED[kind])


def insert_pairs(model: onnx.ModelProto, layers: Mapping[str, EightBits], ranges: Ranges) -> onnx.ModelProto:
    """A copy with Q/DQ pairs before these layers, as TensorRT wants them: signed and symmetric, one step for a feature,
    one for each output channel of weights, which are stored in eight bits. Biases stay floats.

    layers: by the nodes' names; ranges: of the tensors that they read. The graph may be float32, float16 or bfloat16:
    steps are of the type of what they belong to.
    """
    model = copy.deepcopy(model)
    _Pairs(model.graph, ranges).insert(layers)
    return model


class _Pairs:
    def __init__(self, graph: onnx.GraphProto, ranges: Ranges) -> None:
        self._graph, self._ranges = graph, ranges
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        self._made: set[str] = set()

    def insert(self, layers: Mapping[str, EightBits]) -> None:
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for node in nodes:
            kind = layers.get(node.name)
            if kind is not None:
                node.input[0] = self._feature(node.input[0], kind)
                node.input[1] = self._weight(node.input[1], channel_axis(node), kind)
            self._graph.node.append(node)
        read = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _feature(self, name: str, kind: EightBits) -> str:
        own = f"{name}_{kind}"
        if own not in self._made:
            self._made.add(own)
            dtype = tensor_dtype_to_np_dtype(self._kinds[name])
            self._rule(own, steps(max(map(abs, self._ranges[name])), kind, dtype), kind)
            rule = [f"{own}_scale", f"{own}_zero_point"]
            self._graph.node.append(make_node("QuantizeLinear", [name, *rule], [f"{own}_quantized"]))
            self._graph.node.append(make_node("DequantizeLinear", [f"{own}_quantized", *rule], [f"{own}_dequantized"]))
        return f"{own}_dequantized"

    def _weight(self, name: str, axis: int, kind: EightBits) -> str:
        own = name if kind == "int8" else f"{name}_{kind}"
        if own not in self._made:
            self._made.add(own)
            weight = to_array(self._weights[name])
            scale = channel_steps(weight, axis, kind)
            self._rule(own, scale, kind)
            along = scale.reshape([-1 if each == axis else 1 for each in range(weight.ndim)])
            self._graph.initializer.append(from_array(rounded(weight, along, kind), f"{own}_quantized"))
            inputs = [f"{own}_quantized", f"{own}_scale", f"{own}_zero_point"]
            self._graph.node.append(make_node("DequantizeLinear", inputs, [f"{own}_dequantized"], axis=axis))
        return f"{own}_dequantized"

    def _rule(self, own: str, scale: np.ndarray, kind: EightBits) -> None:
        self._graph.initializer.append(from_array(scale, f"{own}_scale"))
        self._graph.initializer.append(from_array(np.zeros(scale.shape, STORED[kind]), f"{own}_zero_point"))
