"""How far two networks may be apart and still be called equal: by the lesser precision of the two."""

from __future__ import annotations

from typing import NamedTuple

from upsnet.manifest import Precision

ORDER: tuple[Precision, ...] = ("int8", "fp16", "fp32")  # the lesser first


class Limits(NamedTuple):
    """Of one precision."""

    snr_db: float  # the least at every place
    matched: float  # the least share of instances that both have
    identical: float  # the least share of the panoptic map's pixels


# What right exports keep to, with room for another photo and another processor: docs/debugging.md has the measurement.
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(90, 0.98, 0.999),
    "fp16": Limits(40, 0.90, 0.99),
    "int8": Limits(10, 0.75, 0.95),
}


def lesser(*precisions: Precision) -> Precision:
    """Of several, the one that rounds most."""
    return min(precisions, key=ORDER.index)
