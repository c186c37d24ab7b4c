"""What `upsnet engine compare` reports: one table, and the keys of its JSON."""

from __future__ import annotations

from pydantic import BaseModel
from rich.table import Table

from eval.comparing.boundaries import PLACES
from eval.comparing.errors import MOST_DB
from eval.comparing.limits import Limits, Rounding
from upsnet.figures import share
from upsnet.manifest import Precision
from upsnet.report import Report, Sparse
from upsnet.tables import make_table

WORST = 3


class Place(Sparse):
    """One place of the network, all photos together. Of instances, those that both have are compared."""

    name: str
    module: str
    values: int  # compared
    max_error: float  # the largest, relative to the largest value of A
    mean_error: float  # the mean, relative to the mean value of A
    cosine: float
    snr_db: float  # the power of A's values over that of the error; 999: no difference
    not_finite: tuple[float, float]  # the share of A's and of B's values that are infinite or no number
    shapes: tuple[list[int], list[int]] | None = None  # where they differ; then nothing was compared
    matched: int | None = None  # instances: those that both have ...
    of: int | None = None  # ... of so many, the larger number of the two for each photo
    identical: float | None = None  # the panoptic map: the share of its pixels
    problem: str | None = None  # why the two part here

    @property
    def differs(self) -> bool:
        """Whether the values here have an error; the panoptic map has no values of its own."""
        return self.identical is None and (self.snr_db < MOST_DB or self.problem is not None)


class Side(BaseModel):
    """One of the two networks."""

    title: str
    precision: Precision
    onnx_sha256: str


class Comparison(Report):
    """compare.json: two networks at every place that both show, in the order of computation."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    a: Side
    b: Side
    photos: list[str]
    precision: Rounding  # the type that rounds most in the two, whose limits hold
    limits: Limits
    places: list[Place]
    first: str | None  # the first place where they part
    worst: list[str]  # the places of the lowest SNR, the lowest first; none without an error
    left_out: dict[str, str]  # places that only one of the two shows, and which one
    notes: list[str]
    equal: bool


def comparison_table(report: Comparison) -> Table:
    """A line for each place."""
    headings = ("place", "module", "SNR dB", "max error", "mean error", "cosine", "not finite", "instances", "")
    table = make_table(describe(report), *headings, left=2)
    for place in report.places:
        if place.identical is not None:
            figures = [f"{share(place.identical)} identical pixels", "", "", ""]
        elif place.shapes:
            figures = [f"{place.shapes[0]} and {place.shapes[1]}", "", "", ""]
        elif not place.values:
            figures = ["nothing", "", "", ""]
        else:
            errors = [f"{each:.1e}" if each else "0" for each in (place.max_error, place.mean_error)]
            figures = [decibels(place.snr_db), *errors, f"{place.cosine:.6f}"]
        table.add_row(place.name, place.module, *figures, _not_finite(place), _instances(place), _mark(report, place))
    table.caption, table.caption_justify = caption(report), "left"
    return table


def describe(report: Comparison) -> str:
    """A and B, and what was looked at."""
    count = len(report.photos)
    return f"A: {report.a.title}\nB: {report.b.title}\n{count} photo{'s' * (count != 1)}"


def caption(report: Comparison) -> str:
    """What the table's figures are."""
    snr, matched, identical = report.limits
    lines = [
        f"Limits of {report.precision}: {snr:g} dB, {100 * matched:g} % of the instances in both, "
        f"{100 * identical:g} % of the pixels.",
        "SNR: power of A's values over that of B's error. Errors are relative: the largest to A's largest value, the "
        "mean to A's mean. Boxes: from their centre.",
        "Instances are matched by IoU; only those that both have are compared, and what the heads say of them.",
    ]
    for side in ("A", "B"):
        if alone := [name for name, shown in report.left_out.items() if shown == side]:
            lines.append(f"Not compared, as {side} alone shows them: {', '.join(alone)}.")
    return "\n".join(lines + report.notes)


def conclusion(report: Comparison) -> str:
    """One line, or two."""
    if report.equal:
        worst = f"; the least SNR is at: {', '.join(report.worst)}" if report.worst else "; no place has an error"
        return f"equal within the limits of {report.precision}{worst}{_unseen(report)}"
    place = next(each for each in report.places if each.name == report.first)
    module = f" ({place.module})" if place.module != place.name else ""
    line = f"NOT equal: they part first at {place.name}{module}: {place.problem}"
    return f"{line}\nworst: {', '.join(report.worst) or 'that'}"


def _unseen(report: Comparison) -> str:
    """What nothing was seen of, though nothing differs: heads of instances, where there are none."""
    names = [place.name for place in report.places if not place.values and place.identical is None]
    return f"\nNOT compared: {', '.join(names)}; give photos (--photo) on which both find instances" if names else ""


def decibels(value: float) -> str:
    return "no error" if value == MOST_DB else f"{value:.1f}"


def module_of(name: str) -> str:
    """Of a place; a block is one itself."""
    return PLACES.get(name, name)


def _not_finite(place: Place) -> str:
    a, b = place.not_finite
    return f"{100 * a:.2g} % / {100 * b:.2g} %" if a or b else ""


def _instances(place: Place) -> str:
    return "" if place.of is None else f"{place.matched} of {place.of}"


def _mark(report: Comparison, place: Place) -> str:
    return "" if place.problem is None else "<- first" if place.name == report.first else "over"
