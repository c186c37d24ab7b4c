"""Do two predictors say the same, and may one take the other's place?

    import upsnet
    from upsnet import parity

    verdict = parity.judge(candidate, reference, parity.PlainPhotos("photos"))
    verdict.passed, verdict.reasons

`upsnet parity` compares the runtimes of one network with it, `upsnet deploy promote` a new version with the one in
service (docs/rollouts.md). It sees the `Predictor` interface alone. Each name comes with its module when it is first
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upsnet import lazy

if TYPE_CHECKING:
    from upsnet.parity.deadline import InTime
    from upsnet.parity.gate import GateLimits, Verdict, judge
    from upsnet.parity.lockstep import run_lockstep
    from upsnet.parity.photos import LabelledPhotos, PlainPhotos
    from upsnet.parity.pixels import category_map, identical_pixels

__all__ = [
    "GateLimits",
    "InTime",
    "LabelledPhotos",
    "PlainPhotos",
    "Verdict",
    "category_map",
    "identical_pixels",
    "judge",
    "run_lockstep",
]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "GateLimits": "upsnet.parity.gate",
        "InTime": "upsnet.parity.deadline",
        "LabelledPhotos": "upsnet.parity.photos",
        "PlainPhotos": "upsnet.parity.photos",
        "Verdict": "upsnet.parity.gate",
        "category_map": "upsnet.parity.pixels",
        "identical_pixels": "upsnet.parity.pixels",
        "judge": "upsnet.parity.gate",
        "run_lockstep": "upsnet.parity.lockstep",
    },
)
