"""How far two networks may be apart and still be called equal: by the lesser precision of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from upsnet.contract import is_for_tensorrt
from upsnet.manifest import Manifest

Rounding = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]


class Limits(NamedTuple):
    """Of one precision."""

    snr_db: float  # the least at every place
    matched: float  # the least share of instances that both have
    identical: float  # the least share of the panoptic map's pixels


# Those that round most come first. What right exports keep to, with room for another photo and another processor:
# docs/debugging.md has the measurement.
LIMITS: dict[Rounding, Limits] = {
    "fp8": Limits(6, 0.75, 0.90),
    "int8": Limits(10, 0.75, 0.95),
    "bf16": Limits(22, 0.80, 0.97),
    "fp16": Limits(40, 0.90, 0.99),
    "tf32": Limits(40, 0.90, 0.99),
    "fp32": Limits(90, 0.98, 0.999),
}


def types_of(manifest: Manifest) -> set[Rounding]:
    """All types that a network computes features in."""
    if manifest.recipe is not None:
        return {*manifest.recipe.types, manifest.recipe.between}
    return {manifest.precision} if manifest.precision != "mixed" else set()


def types_on_cpu(manifest: Manifest, model: Path) -> set[Rounding]:
    """Those of a file in ONNX Runtime on a CPU: it has no TF32, and of an export in two files, the one that is not
    TensorRT's computes in float32 where no CPU has the type."""
    absent: set[Rounding] = {"tf32"} if is_for_tensorrt(model) or not manifest.twins else {"tf32", "bf16", "fp8"}
    return {"fp32" if each in absent else each for each in types_of(manifest)}


def lesser(*types: set[Rounding]) -> Rounding:
    """Of all types, the one that rounds most."""
    return next(each for each in LIMITS if each in set().union(*types))
