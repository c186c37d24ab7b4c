"""A float32 graph -> the same with Q/DQ pairs around its features, for ONNX Runtime's CPU kernels and for TensorRT.

By ONNX Runtime's quantiser. The model-local functions stay as they are, and whatever decides stays float32.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData
from onnxscript.optimizer import fold_constants

from export.calibration import Ranges, find_ranges, signal_to_noise
from export.features import BETWEEN, LAYERS, feature_nodes, features_of, readers_of
from upsnet.geometry import ResizeRule

LEAST_SIGNAL = 20.0  # dB: what a layer gives in eight bits must be that far above its error; docs/export.md
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's: "['', 'rpn', 'conv2d_41']"
ANY_SIZE = 2**62
SENSITIVITY_PHOTOS = 8
INFERRED = ("onnx.infer", "onnxruntime.quant")  # tells the quantiser that the tensors' types are known


class Recipe(NamedTuple):
    """How an executor wants its eight bits."""

    operators: tuple[str, ...]  # that get Q/DQ pairs
    features: QuantType
    options: dict[str, Any]  # of the quantiser


# ONNX Runtime's CPU kernels: unsigned features, signed weights; also what a layer gives is rounded, and biases are
# int32, so that integers go from layer to layer. It has no integer kernel for ConvTranspose.
CPU = Recipe(("Conv", "Gemm", *BETWEEN), QuantType.QUInt8, {})

# TensorRT: signed and symmetric, Q/DQ before a layer alone. TensorRT fuses what comes after it, and its bias is float.
TENSORRT = Recipe(
    LAYERS,
    QuantType.QInt8,
    {
        "ActivationSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(LAYERS),
    },
)


class Quantized(NamedTuple):
    """Both files' graphs from one calibration, and what was found."""

    cpu: onnx.ModelProto
    tensorrt: onnx.ModelProto
    layers: int  # that compute in eight bits
    of: int  # that compute features
    weak: dict[str, float]  # what is computed wrongly from eight bits: by its weights or its module, the dB

    def digest(self) -> str:
        """The hexadecimal SHA-256 of both graphs."""
        graphs = (self.cpu, self.tensorrt)
        return hashlib.sha256(b"".join(each.SerializeToString(deterministic=True) for each in graphs)).hexdigest()

    def __str__(self) -> str:
        """One line."""
        weak = ", ".join(f"{name.removesuffix('.weight')} ({found:.0f} dB)" for name, found in self.weak.items())
        reason = f"; eight bits spoil {weak}: what these read stays float32, and the layers at it" if weak else ""
        return f"int8: {self.layers} of {self.of} layers that compute features{reason}"


def quantize(model: onnx.ModelProto, paths: Sequence[Path], rule: ResizeRule) -> Quantized:
    """Calibrate on photos, and quantise what stands it. The same photos give the same graphs.

    Weights that the graph computes from others are computed in `model` itself.
    """
    fold_constants(model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    nodes = feature_nodes(model.graph)
    ranges = find_ranges(model, features_of(nodes, model.graph), paths, rule)
    readers = readers_of(ranges, model.graph)
    some = paths[:: -(-len(paths) // SENSITIVITY_PHOTOS)]
    decibels = signal_to_noise(model, list(readers), ranges, some, rule)
    weak = {name: found for name, found in zip(readers, decibels, strict=True) if found < LEAST_SIGNAL}
    kept = _without([feature for name in weak for feature in readers[name]], nodes)
    names = [node.name for node in kept]
    return Quantized(
        cpu=_insert_pairs(model, names, ranges, CPU),
        tensorrt=_insert_pairs(model, names, ranges, TENSORRT),
        layers=sum(node.op_type in LAYERS for node in kept),
        of=sum(node.op_type in LAYERS for node in nodes),
        weak=_named(weak, model.graph),
    )


def _named(weak: dict[str, float], graph: onnx.GraphProto) -> dict[str, float]:
    """By the names that people know; the lowest of all nodes that share one."""
    names: dict[str, float] = {}
    for node in graph.node:
        if node.name in weak:
            name = _name(node)
            names[name] = min(weak[node.name], names.get(name, math.inf))
    return names


def _name(node: onnx.NodeProto) -> str:
    """That of a layer's weights; otherwise of the module that the node is in, with its operator."""
    if node.op_type in LAYERS and node.input[1].endswith(".weight"):
        return node.input[1]
    scopes = [ast.literal_eval(each.value) for each in node.metadata_props if each.key == SCOPES]
    return f"{node.op_type} of {scopes[0][-2]}" if scopes and scopes[0][-2:-1] else node.name


def _without(spoilt: Collection[str], nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those nodes that touch no feature which eight bits spoil, nor what such a one is the ReLU of."""
    spoilt = set(spoilt)
    for node in reversed(nodes):
        if node.op_type == "Relu" and node.output[0] in spoilt:
            spoilt.add(node.input[0])
    return [node for node in nodes if spoilt.isdisjoint((*node.input, *node.output))]


def _insert_pairs(model: onnx.ModelProto, nodes: Sequence[str], ranges: Ranges, recipe: Recipe) -> onnx.ModelProto:
    if not nodes:  # the quantiser would take that for all of them
        return copy.deepcopy(model)
    model = copy.deepcopy(model)
    model.metadata_props.add(key=INFERRED[0], value=INFERRED[1])
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=recipe.features,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(recipe.operators),
        extra_options=dict(recipe.options),
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    kept = [entry for entry in quantized.metadata_props if entry.key != INFERRED[0]]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(kept)
    return quantized
