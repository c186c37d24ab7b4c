"""Line charts as inline SVG: no library, no external file; the page's CSS gives the colours, light or dark."""

from __future__ import annotations

import math
from html import escape

Points = list[tuple[float, float]]
WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 28, 14, 46


def line_chart(series: dict[str, Points], unit: str, faint: Points | None = None) -> str:
    """<svg> of named series over training steps; `faint` is drawn thin behind them (unsmoothed values).

    `unit` labels the vertical axis. Series take the CSS classes line-0, line-1, ... in order.
    """
    points = [point for line in [*series.values(), faint or []] for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))
    x_low, x_high, y_low, y_high = min(xs), max(max(xs), min(xs) + 1e-9), y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    def path(line: Points, css: str) -> str:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        return f'<polyline class="{css}" points="{steps}"/>'

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(unit)} over training steps">']
    for y in y_ticks:
        _, height = place(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            parts.append(
                f'<text x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.0f}</text>'
            )
    parts.append(f'<text class="unit" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step</text>')
    if faint:
        parts.append(path(thin(faint), "faint"))
    for number, line in enumerate(series.values()):
        parts.append(path(thin(line), f"line line-{number}"))
        x, y = place(*line[-1])
        parts.append(f'<circle class="dot dot-{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def smooth(points: Points, window: int) -> Points:
    """Moving average over the last `window` values."""
    result = []
    for index, (x, _) in enumerate(points):
        recent = [y for _, y in points[max(0, index + 1 - window) : index + 1]]
        result.append((x, sum(recent) / len(recent)))
    return result


def thin(points: Points, most: int = 400) -> Points:
    """At most about `most` points, evenly chosen, the last one always kept."""
    stride = max(1, math.ceil(len(points) / most))
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
