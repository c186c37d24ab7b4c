"""How the figures of a report are written for people."""

from __future__ import annotations

import math

from upsnet.runtimes.options import RUNTIMES


def title(runtime: str) -> str:
    """A runtime's name as people write it."""
    return RUNTIMES[runtime].title if runtime in RUNTIMES else runtime


def points(fraction: float | None, digits: int = 1) -> str:
    """A fraction in points of a hundred; a dash where there is none."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def signed(fraction: float) -> str:
    """A difference in points."""
    return "0" if fraction == 0 else f"{100 * fraction:+.3f}"


def share(fraction: float) -> str:
    """A share of pixels, never rounded up to 100 %."""
    return "100 %" if fraction == 1 else f"{math.floor(fraction * 1e5) / 1e3:.3f} %"
