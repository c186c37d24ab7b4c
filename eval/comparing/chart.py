"""The picture of a comparison: what every place keeps of the other network's values, in dB, and the relative errors."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.comparing.errors import MOST_DB
from eval.comparing.report import Comparison, Place, describe
from eval.profiling.chart import COLORS, GRID, TEXT
from upsnet.figures import share

PARTED = "#c0392b"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # words, over the limit's line


def draw(report: Comparison, kind: str = "png") -> bytes:
    """The picture's file: "png" or "svg"."""
    places = report.places
    figure = Figure(figsize=(12, 1.9 + 0.3 * len(places)), layout="constrained", facecolor="white")
    figure.suptitle(describe(report), color=TEXT, fontsize=11, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.4, 1))
    _decibels(left, report, places)
    _errors(right, places)
    for axes in (left, right):
        axes.tick_params(labelcolor=TEXT, length=0)
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=GRID)
    left.set_yticks(range(len(places)), [place.name for place in places])
    left.invert_yaxis()
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "upsnet"}):  # the same picture gives the same bytes
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _decibels(axes: Axes, report: Comparison, places: list[Place]) -> None:
    """A bar for each place with an error, red where the two part, and the limit. The panoptic map, which has no
    decibels, stands there in words."""
    limit = report.limits.snr_db
    known = [place.snr_db for place in places if place.identical is None and abs(place.snr_db) < MOST_DB]
    longest = 1.25 * max([limit, *known])
    for row, place in enumerate(places):
        known_here = place.identical is None and place.values and abs(place.snr_db) < MOST_DB
        length = max(place.snr_db, 0) if known_here else 0
        axes.barh(row, length, 0.7, color=PARTED if place.problem else COLORS[0], alpha=0.85)
        words = f" {_words(report, place)}"
        color = PARTED if place.problem else TEXT  # where there is no bar, the words alone tell
        axes.text(length, row, words, va="center", color=color, fontsize=9, bbox=BEHIND)
    axes.axvline(limit, color=TEXT, linewidth=1.2, linestyle="--")
    axes.set_xlim(0, 1.45 * longest)
    axes.set_title(f"Signal to noise, dB; the limit of {report.precision}: {limit:g}", color=TEXT, fontsize=11)


def _words(report: Comparison, place: Place) -> str:
    if place.identical is not None:
        words = f"{share(place.identical)} identical pixels, limit {100 * report.limits.identical:g} %"
    elif place.shapes:
        words = f"shapes {place.shapes[0]}, {place.shapes[1]}"
    elif not place.values:
        words = "nothing"
    else:
        words = "no error" if place.snr_db == MOST_DB else f"{place.snr_db:.0f}"
    if any(place.not_finite):
        words += f", {100 * max(place.not_finite):.2g} % not finite"
    if place.of is not None:
        words += f", {place.matched} of {place.of} matched"
    return words + ("  first" if place.name == report.first else "")


def _errors(axes: Axes, places: list[Place]) -> None:
    """The largest and the mean error of each place that has one: 0 is on no logarithmic axis."""
    for name, color, size in (("max_error", COLORS[1], 8), ("mean_error", COLORS[2], 5)):
        rows = [row for row, place in enumerate(places) if place.differs and getattr(place, name) > 0]
        axes.plot(
            [getattr(places[row], name) for row in rows],
            rows,
            "o",
            color=color,
            markersize=size,
            label=name.replace("_", " "),
        )
    axes.set_title("Errors, relative to A's largest and mean value", color=TEXT, fontsize=11)
    if not any(place.differs for place in places):
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="best")
