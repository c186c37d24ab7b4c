"""How long the layers of a network would take in mixed types on a GPU, by its data sheet: nothing ran there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.precision_search.rounding import Call, Rounded
from eval.profiling.roofline import Kind, Roofline
from export.precision import float_type
from upsnet.manifest import EIGHT_BITS, ModuleType, Recipe

BYTES: dict[ModuleType, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


class Layer(NamedTuple):
    """What one layer has to do in one forward pass."""

    module: str | None
    eligible: bool  # for eight bits
    macs: int
    read: int  # values of features
    weights: int
    written: int


def layers_of(calls: Sequence[Call], network: Rounded) -> list[Layer]:
    """Of every convolution and matrix product of one forward pass (`Rounded.observe`)."""
    return [
        Layer(
            module=call.module,
            eligible=call.number is not None and network.eligible[call.number],
            macs=call.output.numel() * (call.inputs.shape[-1] if call.weight.ndim < 3 else call.weight[0].numel()),
            read=call.inputs.numel(),
            weights=call.weight.numel(),
            written=call.output.numel(),
        )
        for call in calls
    ]


def milliseconds(layers: Sequence[Layer], recipe: Recipe, gpu: Roofline) -> float:
    """Each layer takes at least its products at the peak of its type, or its values through memory; all other nodes
    count as nothing."""
    return sum(_milliseconds(layer, recipe, gpu) for layer in layers)


def _milliseconds(layer: Layer, recipe: Recipe, gpu: Roofline) -> float:
    around: ModuleType = "fp32" if layer.module is None else float_type(recipe, layer.module)
    own = around
    if layer.eligible and layer.module is not None and (kind := recipe.type_of(layer.module)) in EIGHT_BITS:
        own = kind
    moved = BYTES[own] * (layer.read + layer.weights) + BYTES[around] * layer.written
    peak: Kind = "fp16" if own == "bf16" else own
    return gpu.milliseconds(layer.macs, moved, peak)
