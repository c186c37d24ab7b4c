"""How far two networks may be apart and still be called equal: by the lesser precision of the two."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
    "fp8": Limits(6, 0.60, 0.90),
    "int8": Limits(10, 0.75, 0.95),
    "bf16": Limits(22, 0.80, 0.97),
    "fp16": Limits(40, 0.90, 0.99),
    "tf32": Limits(40, 0.90, 0.99),
    "fp32": Limits(90, 0.98, 0.999),
}


def lesser(*manifests: Manifest) -> Rounding:
    """Of all types that networks compute in, the one that rounds most."""
    types: set[Rounding] = set()
    for manifest in manifests:
        types |= manifest.recipe.types if manifest.recipe is not None else set()
        types |= {manifest.precision} if manifest.precision != "mixed" else set()
    return next(each for each in LIMITS if each in types)
