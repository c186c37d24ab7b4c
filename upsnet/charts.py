"""Charts inside a page: SVG in the page's own colours (figures.css), so that one picture serves light and dark.

matplotlib, which draws the pictures that go into files, is no package of the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

Points = list[tuple[float, float]]
Write = Callable[[float], str]

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 22  # margins
COLOURS = 6  # of figures.css, --line-1 to --line-6; further lines are dashed
MOST_POINTS = 300  # of a line
MOST_MARKS = 40  # of a line whose points are marked, each with its figures where the mouse rests
MOST_DRAWN = 1e12


class Bar(NamedTuple):
    """What a histogram counts of one name in one bin."""

    label: str
    counts: Sequence[int]


def figure(value: float) -> str:
    """A number of an axis or of a mark: 4 digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def is_drawable(value: object) -> bool:
    """Whether a value of a metrics.jsonl is a number that an axis can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_DRAWN  # nor nan


def line_chart(lines: Mapping[str, Points], faint: Sequence[tuple[float, float]] = (), title: str = "") -> Markup:
    """Named lines over training steps as <svg>, with a legend where there are several; "" without a point.

    The axis begins at 0. faint: drawn thin behind them. A name without points keeps its colour, and has no line.
    """
    points = [point for each in (*lines.values(), faint) for point in each]
    if not points:
        return Markup("")
    steps, values = zip(*points, strict=True)
    x = _Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _Axis(min(0.0, *values), max(0.0, *values), HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y)]
    if faint:
        parts.append(_path(list(faint), x, y, "faint"))
    for index, (name, line) in enumerate(lines.items()):
        if line:
            parts.append(_line(name, line, x, y, _style(index)))
    legend = _legend({name: _style(index) for index, (name, line) in enumerate(lines.items()) if line})
    return legend + _svg(Markup("").join(parts), f"{title} over steps: {', '.join(lines)}")


def sparkline(points: Points, highest: float = 1.0) -> Markup:
    """A line as high as a row of text, from 0 to `highest`; "" with less than two points."""
    if len(points) < 2:
        return Markup("")
    x, y = _Axis(points[0][0], points[-1][0], 2, 98), _Axis(0, highest, 22, 2)
    drawn = _path(points, x, y, "line-1")
    return Markup('<svg class="spark" viewBox="0 0 100 24" aria-hidden="true">{}</svg>').format(drawn)


def histogram(names: Sequence[str], bars: Sequence[Bar], title: str = "") -> Markup:
    """Columns side by side in each bin, one for each name, as <svg> with a legend."""
    most = max((count for bar in bars for count in bar.counts), default=0)
    y = _Axis(0, most, HEIGHT - BOTTOM, TOP)
    parts = [_grid(None, y)]
    room = (WIDTH - RIGHT - LEFT) / max(1, len(bars))
    width = 0.8 * room / max(1, len(names))
    for place, bar in enumerate(bars):
        left = LEFT + room * place
        parts.append(_text(left + room / 2, HEIGHT - 6, bar.label, "middle"))
        for index, (name, count) in enumerate(zip(names, bar.counts, strict=True)):
            mark = Markup(
                '<rect class="fill-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            )
            top = y(count)
            at = left + 0.1 * room + width * index
            words = f"{name}, {bar.label}: {count}"
            parts.append(mark.format(index + 1, at, top, width, HEIGHT - BOTTOM - top, words))
    styles = {name: f"line-{index + 1}" for index, name in enumerate(names)}
    return _legend(styles) + _svg(Markup("").join(parts), title)


def smooth(points: Points, window: int) -> Points:
    """Moving average over the last `window` values."""
    steps, values = np.array(points, float).reshape(-1, 2).T
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return list(zip(steps.tolist(), ((sums[ends] - sums[starts]) / (ends - starts)).tolist(), strict=True))


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about so many points, evenly spread, with the first and the last."""
    stride = math.ceil(len(points) / most)
    return points if stride < 2 else [*points[:-1:stride], points[-1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, at most about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


class _Axis:
    """A value's place between two places of the picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = float(low), float(high)
        self._start, self._scale = start, (end - start) / ((self.high - self.low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) * self._scale


def _style(index: int) -> str:
    """CSS classes of line number `index`."""
    dash = " dash" if index // COLOURS % 2 else ""
    return f"line-{index % COLOURS + 1}{dash}"


def _grid(x: _Axis | None, y: _Axis) -> Markup:
    """The lines and numbers of the axes; a histogram's x has its own."""
    parts = []
    for value in ticks(y.low, y.high, 4):
        rule = Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        parts.append(rule.format(LEFT, WIDTH - RIGHT, y(value), y(value)))
        parts.append(_text(LEFT - 7, y(value) + 4, figure(value), "end"))
    if x:
        parts += [_text(x(value), HEIGHT - 6, figure(value), "middle") for value in ticks(x.low, x.high)]
    return Markup("").join(parts)


def _line(name: str, line: Points, x: _Axis, y: _Axis, style: str) -> Markup:
    few = len(line) <= MOST_MARKS
    mark = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
    marks = [
        mark.format(style, x(step), y(value), f"{name}, step {figure(step)}: {figure(value)}")
        for step, value in (line if few else line[-1:])
    ]
    return _path(line, x, y, style) + Markup("").join(marks)


def _path(points: Points, x: _Axis, y: _Axis, style: str) -> Markup:
    places = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in thinned(points))
    return Markup('<polyline class="{}" points="{}"/>').format(style, places)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _legend(styles: Mapping[str, str]) -> Markup:
    if len(styles) < 2:
        return Markup("")
    stroke = '<svg viewBox="0 0 22 8" aria-hidden="true"><polyline class="{}" points="1,4 21,4"/></svg>'
    item = Markup(f"<span>{stroke}{{}}</span>")
    return Markup('<div class="legend">{}</div>').format(
        Markup("").join(item.format(style, name) for name, style in styles.items())
    )


def _svg(inside: Markup, words: str) -> Markup:
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(words), inside
    )
