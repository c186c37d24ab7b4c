"""Which types an engine computes in, held against what was asked for: a builder may write a float32 engine and say
nothing."""

from __future__ import annotations

from collections.abc import Mapping

from upsnet.manifest import Manifest, ModuleType, Recipe

Counts = Mapping[str, Mapping[str, int]]  # kind of layer -> type -> how many

# TensorRT's name (DataType) of each. TF32 is float32's type and a flag of the builder's.
NAMES: dict[ModuleType, str] = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}


def wrong_types(manifest: Manifest, layers: Counts) -> list[str]:
    """What of an engine is not as the manifest's precision asks, a line each; [] where all is.

    layers: those that hold weights, by their kind and the type that they compute in, TensorRT's DataType:
    {"CONVOLUTION": {"HALF": 53}}. A layer that reads what a DEQUANTIZE layer gives computes in that one's input type,
    INT8 or FP8.
    """
    recipe = manifest.recipe or Recipe(
        default="fp32" if manifest.precision in ("tf32", "mixed") else manifest.precision
    )
    # Layers that decide are not rounded to eight bits.
    allowed = {NAMES[each] for each in (*recipe.types, recipe.between)}
    found = {kind for kinds in layers.values() for kind, count in kinds.items() if count}
    if not found:
        return [f"{manifest.precision}: no layer with weights was found in the engine"]
    wrong = [
        f"{manifest.precision}: {count} of {sum(kinds.values())} {layer} layers compute in {kind}, not in "
        f"{' or '.join(sorted(allowed))}"
        for layer, kinds in layers.items()
        for kind, count in kinds.items()
        if count and kind not in allowed
    ]
    # The default may be that of no module, where each has a type of its own.
    needed = [*recipe.modules.values()] or [recipe.default]
    missing = sorted({NAMES[each] for each in needed} - found)
    return wrong + [
        f"{manifest.precision}: no layer computes in {kind}; they are {_listed(layers)}" for kind in missing
    ]


def _listed(layers: Counts) -> str:
    return ", ".join(f"{count} {layer} {kind}" for layer, kinds in layers.items() for kind, count in kinds.items())
