"""ablation.json: the figures of every run, and what follows from them; the table on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from upsnet.figures import points
from upsnet.report import Report
from upsnet.tables import make_table

Verdict = Literal["pays", "costs", "within the spread", "one seed"]


# Student's t at 95 %, two-sided, of 2, 3, ... seeds; of more than these the last, which is a little strict. With
# two standard errors a part that is worth nothing would get a verdict in 3 of 10 cases of two seeds, 2 of 10 of three.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


class SeedFigures(BaseModel):
    """One run's figures on the whole validation set, fractions; curve: (step, PQ) of its evaluations on the way."""

    model_config = ConfigDict(frozen=True)

    seed: int
    pq: float | None
    pq_things: float | None
    pq_stuff: float | None
    curve: list[tuple[int, float]] = []


class Row(BaseModel):
    """A variant's runs."""

    model_config = ConfigDict(frozen=True)

    name: str
    added: bool  # the variant has the part, and everything has not
    overrides: list[str]
    seeds: list[SeedFigures]

    def with_seed(self, figures: SeedFigures) -> Row:
        """The row with one run more, in the order of seeds."""
        others = [each for each in self.seeds if each.seed != figures.seed]
        return self.model_copy(update={"seeds": sorted([*others, figures], key=lambda each: each.seed)})


class Worth(NamedTuple):
    """PQ with a part less PQ without it, seed by seed: fractions."""

    differences: list[float]
    mean: float
    deviation: float | None  # standard, of a seed; None: one seed alone
    verdict: Verdict


class Ablation(Report):
    """What `upsnet ablation` found so far; the first row is everything's."""

    config: str
    overrides: list[str]
    images: int  # validation images
    left_out: list[str]  # parts that were not looked at, and why
    rows: list[Row]

    def with_figures(self, name: str, figures: SeedFigures) -> Ablation:
        """The report with one run more in the row of that name."""
        rows = [row.with_seed(figures) if row.name == name else row for row in self.rows]
        return self.model_copy(update={"rows": rows})

    @property
    def extent(self) -> str:
        """On how much, in words."""
        seeds = max(len(row.seeds) for row in self.rows)
        return f"{seeds} seed{'s' * (seeds > 1)}, {self.images} images"

    def worth(self, row: Row) -> Worth | None:
        """What the row's part is worth; None for everything itself, or before there are two runs of one seed."""
        base = {each.seed: each.pq for each in self.rows[0].seeds}
        pairs = [(base[each.seed], each.pq) for each in row.seeds if each.seed in base]
        sign = -1 if row.added else 1
        differences = [sign * ((one or 0.0) - (other or 0.0)) for one, other in pairs]
        if row is self.rows[0] or not differences:
            return None
        return worth_of(differences)


def worth_of(differences: Sequence[float]) -> Worth:
    """The mean, and whether 0 lies outside its 95 % confidence interval."""
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Worth(list(differences), mean, None, "one seed")
    deviation = statistics.stdev(differences)
    student = STUDENT[min(len(differences) - 2, len(STUDENT) - 1)]
    if abs(mean) <= student * deviation / math.sqrt(len(differences)):
        return Worth(list(differences), mean, deviation, "within the spread")
    return Worth(list(differences), mean, deviation, "pays" if mean > 0 else "costs")


def ablation_table(report: Ablation) -> Table:
    """PQ in points: means over the seeds, with standard deviations."""
    table = make_table(
        f"Ablation of {report.config}: {report.extent}", "", "PQ", "things", "stuff", "the part is worth", "seeds", ""
    )
    for row in report.rows:
        if not row.seeds:
            continue
        worth = report.worth(row)
        table.add_row(
            row.name,
            *(spread([getattr(each, key) for each in row.seeds]) for key in ("pq", "pq_things", "pq_stuff")),
            "" if worth is None else with_deviation(worth.mean, worth.deviation, "+"),
            str(len(row.seeds)),
            "" if worth is None else worth.verdict,
        )
    return table


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation in points."""
    known = [value for value in values if value is not None]
    if not known:
        return points(None)
    return with_deviation(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def with_deviation(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
