"""What "equal" means."""

from __future__ import annotations

from dataclasses import dataclass

from upsnet.figures import share, title
from upsnet.manifest import Precision
from upsnet.parity.figures import ColumnFigures

INT8 = {"max_pq_difference": 0.005, "min_identical": 0.98}  # what eight bits keep to; docs/precision.md
ROUNDED: tuple[Precision, ...] = ("int8", "fp8", "mixed")


@dataclass(frozen=True)
class Limits:
    """What "equal" means; all fractions."""

    max_pq_difference: float = 0.001  # of PQ for all, things and stuff alike
    min_identical: float = 0.999  # share of the pixels
    min_pq: float = 0.0  # what PQ of all classes must reach in every runtime


def reasons_of(figures: ColumnFigures, precision: Precision, limits: Limits) -> list[str]:
    """Why this column is not equal to the reference, in words; [] when it is."""
    where = f"{title(figures.runtime)}{f' {precision}' * (precision in ROUNDED)}, batch {figures.batch}"
    allowed, needed = f"{100 * limits.max_pq_difference:g}", f"{100 * limits.min_identical:g} %"
    if precision in ROUNDED and limits == Limits(min_pq=limits.min_pq):
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in INT8.items())
        allowed, needed = (f"{limit} (of eight bits expect less: {flags})" for limit in (allowed, needed))
    reasons = [
        f"{where}: PQ ({group.lower()}) differs by {100 * difference:+.3f} points, allowed {allowed}"
        for group, difference in figures.difference.items()
        if not abs(difference) <= limits.max_pq_difference
    ]
    if not figures.identical >= limits.min_identical:
        reasons.append(f"{where}: {share(figures.identical)} of the pixels identical, needed {needed}")
    pq = figures.results["All"].pq
    if not (pq or 0.0) >= limits.min_pq:
        found = "no PQ, as no segment is there" if pq is None else f"PQ {100 * pq:.1f}"
        reasons.append(f"{where}: {found}, needed {100 * limits.min_pq:g}")
    return reasons
