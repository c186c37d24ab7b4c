"""What `upsnet precision-search` reports: its JSON and its table."""

from __future__ import annotations

from pydantic import BaseModel
from rich.table import Table

from upsnet.manifest import ModuleType, Recipe
from upsnet.report import Report
from upsnet.tables import make_table

UNDECIDED = "undecided"


class AloneRow(BaseModel):
    """A module that alone has its narrowest type."""

    module: str
    kind: ModuleType
    drop: float  # of PQ, points
    saved: float  # time, in `unit`


class Total(BaseModel):
    """On all images."""

    pq: float  # a fraction
    time: float


class PrecisionSearch(Report):
    """precision_search.json: the recipe that was found, and what it rests on."""

    model: str
    how: str  # PQ and time were measured
    unit: str  # of times
    estimated: bool  # whether times are, by a data sheet
    max_drop: float  # points
    images: int
    searched_images: int  # on which the search looked at recipes
    evaluations: int  # all, those on all images too
    complete: bool  # False: the budget ended before the search did
    undecided: list[str]  # modules of which it then was not known what they may have; the recipe gives them its default
    recipe: Recipe
    float32: Total
    found: Total
    alone: list[AloneRow]
    machine: dict[str, str | int]
    versions: dict[str, str]

    @property
    def drop(self) -> float:
        """Points of PQ that the recipe loses on all images."""
        return 100 * (self.float32.pq - self.found.pq)

    def got(self, module: str) -> str:
        """The type that the search gave it, or that it gave none."""
        return UNDECIDED if module in self.undecided else self.recipe.type_of(module)

    @property
    def title(self) -> str:
        """Of table and picture."""
        unfinished = "" if self.complete else "UNFINISHED, the budget ended before the search; "
        return f"{self.model}: {unfinished}{self.how}"


def search_table(report: PrecisionSearch) -> Table:
    """A line for each module, in the order in which they were added."""
    about = "estimated " if report.estimated else ""
    table = make_table(
        report.title,
        *("module", "alone in", "PQ lost\npoints", f"{about}time saved\n{report.unit}", "got"),
    )
    for each in report.alone:
        cells = (each.module, each.kind, f"{each.drop:+.2f}", f"{each.saved:.2f}", report.got(each.module))
        table.add_row(*cells)
    for name in sorted(set(report.undecided) - {each.module for each in report.alone}):
        table.add_row(name, "not looked at", "", "", report.got(name))
    table.add_section()
    saved = f"{report.float32.time - report.found.time:.2f}"
    table.add_row(
        f"all, on {report.images} images", "", f"{report.drop:+.2f}", saved, f"default {report.recipe.default}"
    )
    return table
