"""A traced graph -> the same with Q/DQ pairs around its features, for ONNX Runtime's CPU kernels and for TensorRT.

The first by ONNX Runtime's quantiser. The model-local functions stay as they are, and whatever decides stays float.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData
from onnxscript.optimizer import fold_constants

from export.calibration import find_ranges, signal_to_noise
from export.eight_bits import EightBits, Ranges, insert_pairs
from export.features import BETWEEN, LAYERS, feature_nodes, features_of, readers_of
from export.modules import Modules, module_at, scope_of
from upsnet.datasets.places import File
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule
from upsnet.manifest import EIGHT_BITS, ModuleType, Recipe

LEAST_SIGNAL = 20.0  # dB: what a layer gives in eight bits must be that far above its error; docs/precision.md
ANY_SIZE = 2**62
SENSITIVITY_PHOTOS = 8
INFERRED = ("onnx.infer", "onnxruntime.quant")  # tells the quantiser that the tensors' types are known
# What ONNX Runtime's CPU kernels compute in eight bits; it has no integer kernel for ConvTranspose.
ON_CPU = ("Conv", "Gemm", *BETWEEN)
INT8 = Recipe(default="int8")


class Quantized(NamedTuple):
    """The graphs of one calibration, and what was found."""

    graph: onnx.ModelProto  # ONNX Runtime's
    tensorrt: onnx.ModelProto | None  # None: the same
    layers: int  # that compute in eight bits
    of: int  # that compute features
    weak: dict[str, float]  # what is computed wrongly from eight bits: by its weights or its module, the dB
    precision: str = "int8"
    kept: bool = True  # whether what they spoil is left floating point

    def __str__(self) -> str:
        """One line."""
        weak = ", ".join(f"{name.removesuffix('.weight')} ({found:.0f} dB)" for name, found in self.weak.items())
        after = "what these read stays floating point, and the layers at it"
        if not self.kept:
            after = "the recipe has them nevertheless; `upsnet precision-search` says what that costs"
        reason = f"; eight bits spoil {weak}: {after}" if weak else ""
        return f"{self.precision}: {self.layers} of {self.of} layers that compute features have eight bits{reason}"


def digest(*graphs: onnx.ModelProto) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(b"".join(each.SerializeToString(deterministic=True) for each in graphs)).hexdigest()


def quantize(
    model: onnx.ModelProto,
    paths: Sequence[File],
    rule: ResizeRule,
    recipe: Recipe = INT8,
    modules: Modules | None = None,
) -> Quantized:
    """int8 of a float32 graph: calibrate on photos, and quantise what stands it. The same photos give the same graphs.

    recipe: of int8 and fp32 alone. Where it names modules (`modules_of` the network: `modules`), all their layers have
    eight bits, also those that these spoil; without names such layers stay float32. Weights that the graph computes
    from others are computed in `model` itself.
    """
    fold(model)
    nodes = feature_nodes(model.graph)
    _check_eligible(recipe, modules or {}, layers_of(model.graph))
    chosen = [node for node in nodes if _type_of(node, recipe, modules) == "int8"]
    ranges = find_ranges(model, features_of(chosen, model.graph), paths, rule)
    readers = readers_of(ranges, model.graph)
    decibels = signal_to_noise(model, list(readers), ranges, _some(paths), rule)
    weak = {name: found for name, found in zip(readers, decibels, strict=True) if found < LEAST_SIGNAL}
    spoilt = [] if recipe.modules else [feature for name in weak for feature in readers[name]]
    kept = _without(spoilt, chosen)
    layers = [node.name for node in kept if node.op_type in LAYERS]
    return Quantized(
        graph=_for_cpu(model, [node.name for node in kept], ranges),
        tensorrt=insert_pairs(model, dict.fromkeys(layers, "int8"), ranges),
        layers=len(layers),
        of=sum(node.op_type in LAYERS for node in nodes),
        weak=_named(weak, model.graph),
        kept=not recipe.modules,
    )


def quantize_layers(
    model: onnx.ModelProto,
    target: onnx.ModelProto,
    paths: Sequence[File],
    rule: ResizeRule,
    recipe: Recipe,
    modules: Modules,
) -> Quantized:
    """`target` with Q/DQ pairs of int8 and fp8 before the layers of the recipe's modules of such types, as its `graph`.

    model: float32, what is calibrated on photos. target: the same network in the floating-point types of the recipe;
    it may be the same graph. What eight bits spoil: see `quantize`. InputError for a module of eight bits without a
    layer that could have them.
    """
    for each in {id(model): model, id(target): target}.values():
        fold(each)
    layers, twins = layers_of(model.graph), layers_of(target.graph)
    assert [scope_of(node) for node in layers] == [scope_of(node) for node in twins], "two traces of one network"
    _check_eligible(recipe, modules, layers)
    kinds: dict[str, EightBits] = {}
    ranges: Ranges = {}
    weak: dict[str, float] = {}
    for kind in EIGHT_BITS:
        own = [node for node in layers if _type_of(node, recipe, modules) == kind]
        if not own:
            continue
        found = find_ranges(model, features_of(own, model.graph), paths, rule)
        decibels = signal_to_noise(model, [node.name for node in own], found, _some(paths), rule, kind)
        spoilt = {node.name: ratio for node, ratio in zip(own, decibels, strict=True) if ratio < LEAST_SIGNAL}
        kinds |= {node.name: kind for node in own if recipe.modules or node.name not in spoilt}
        ranges |= found
        weak |= spoilt
    pairs = [(node, twin) for node, twin in zip(layers, twins, strict=True) if node.name in kinds]
    read = {twin.input[0]: ranges[node.input[0]] for node, twin in pairs}
    return Quantized(
        graph=insert_pairs(target, {twin.name: kinds[node.name] for node, twin in pairs}, read),
        tensorrt=None,
        layers=len(pairs),
        of=len(layers),
        weak=_named(weak, model.graph),
        kept=not recipe.modules,
    )


def layers_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that may have eight bits, in the graph's order."""
    return [node for node in feature_nodes(graph) if node.op_type in LAYERS]


def fold(model: onnx.ModelProto) -> None:
    """Compute what depends on weights alone, weights that are made of others too."""
    fold_constants(model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)


def _some(paths: Sequence[File]) -> Sequence[File]:
    """As many as sensitivity is measured on."""
    return paths[:: -(-len(paths) // SENSITIVITY_PHOTOS)]


def _type_of(node: onnx.NodeProto, recipe: Recipe, modules: Modules | None) -> ModuleType:
    scope = scope_of(node)
    return recipe.type_of(module_at(scope, modules or {}) or scope)


def _check_eligible(recipe: Recipe, modules: Modules, layers: Sequence[onnx.NodeProto]) -> None:
    eligible = {module_at(scope_of(node), modules) for node in layers}
    for name, kind in recipe.modules.items():
        own = {module for module in modules if module == name or module.startswith(f"{name}.")}
        if kind in EIGHT_BITS and not own & eligible:
            raise InputError(
                f"{name}: none of its layers can have {kind}: deformable convolutions, and what gives offsets, logits "
                f"or boxes, stay floating point; give it fp16 or bf16"
            )


def _named(weak: Mapping[str, float], graph: onnx.GraphProto) -> dict[str, float]:
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
    return f"{node.op_type} of {scope}" if (scope := scope_of(node)) else node.name


def _without(spoilt: Collection[str], nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those nodes that touch no feature which eight bits spoil, nor what such a one is the ReLU of."""
    spoilt = set(spoilt)
    for node in reversed(nodes):
        if node.op_type == "Relu" and node.output[0] in spoilt:
            spoilt.add(node.input[0])
    return [node for node in nodes if spoilt.isdisjoint((*node.input, *node.output))]


def _for_cpu(model: onnx.ModelProto, nodes: Sequence[str], ranges: Ranges) -> onnx.ModelProto:
    """Unsigned features, signed weights; also what a layer gives is rounded, and biases are int32, so that integers go
    from layer to layer."""
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
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(ON_CPU),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    kept = [entry for entry in quantized.metadata_props if entry.key != INFERRED[0]]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(kept)
    return quantized
