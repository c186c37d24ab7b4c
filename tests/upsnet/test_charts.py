"""Charts of pages: where points come to lie, and what may stand in names."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from upsnet.charts import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Points,
    histogram,
    is_drawable,
    line_chart,
    smooth,
    sparkline,
    thinned,
    ticks,
)


def parsed(drawn: Markup) -> ElementTree.Element:
    """A chart with its legend, as XML."""
    return ElementTree.fromstring(f"<div>{drawn}</div>")


def lines(drawn: Markup) -> list[list[tuple[float, float]]]:
    """The points of the plot's lines, in pixels."""
    (plot,) = (each for each in parsed(drawn).iter("svg") if each.get("class") in ("plot", "spark"))
    texts = [each.get("points", "") for each in plot.iter("polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in text.split())] for text in texts]


def test_points_lie_where_the_axes_say() -> None:
    drawn = line_chart({"PQ": [(10, 0.0), (20, 25.0), (30, 50.0)]})
    left, right, low, high = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    assert lines(drawn) == [[(left, low), ((left + right) / 2, (low + high) / 2), (right, high)]]
    assert [each.text for each in parsed(drawn).iter("text")] == ["0", "20", "40", "10", "15", "20", "25", "30"]
    assert [each.text for each in parsed(drawn).iter("title")] == [
        "PQ, step 10: 0",
        "PQ, step 20: 25",
        "PQ, step 30: 50",
    ]


def test_axis_holds_zero_and_what_is_below() -> None:
    (line,) = lines(line_chart({"loss": [(0, -1.0), (1, 3.0)]}))
    assert [y for _, y in line] == [HEIGHT - BOTTOM, TOP]
    (line,) = lines(line_chart({"loss": [(0, 2.0), (1, 4.0)]}))
    assert line[0][1] == (HEIGHT - BOTTOM + TOP) / 2


def test_faint_points_are_drawn_first_and_make_room() -> None:
    faint, line = lines(line_chart({"loss": [(1, 1.0), (2, 1.0)]}, [(0, 2.0), (4, 0.0)]))
    assert [y for _, y in faint] == [TOP, HEIGHT - BOTTOM]
    assert {y for _, y in line} == {(HEIGHT - BOTTOM + TOP) / 2}


@pytest.mark.parametrize(
    "points", [[(3.0, 0.0), (3.0, 0.0)], [(3.0, 1.0)], [(0.0, 1e-300)], [(0.0, 9e11), (1.0, -9e11)]]
)
def test_flat_lines_single_points_and_extremes(points: Points) -> None:
    drawn = str(line_chart({"PQ": points}))
    assert "nan" not in drawn and "inf" not in drawn


def test_nothing_to_draw() -> None:
    assert line_chart({}) == line_chart({"a": []}) == sparkline([]) == sparkline([(1.0, 0.5)]) == ""


def test_names_are_escaped() -> None:
    drawn = line_chart({"<script>x</script>": [(1, 1.0)], '"&': [(2, 1.0)]}, title='"><b>')
    drawn += histogram(("<i>", "b"), [Bar("<u>", (1, 2))], '"<s>')
    assert not re.search(r"<(script|b|i|u|s)>", drawn)
    assert "<script>x</script>, step 1: 1" in [each.text for each in parsed(drawn).iter("title")]


def test_legend_names_the_lines_that_are_there_and_colours_stay() -> None:
    two: Points = [(0, 1.0), (1, 2.0)]
    drawn = line_chart({"a": two, "b": [], "c": two})
    assert [each.text or "".join(each.itertext()) for each in parsed(drawn).iter("span")] == ["a", "c"]
    assert {each.get("class") for each in parsed(drawn).iter("polyline")} == {"line-1", "line-3"}
    many = line_chart({str(number): two for number in range(COLOURS + 1)})
    assert "line-1 dash" in many and "line-7" not in many


def test_histogram_columns() -> None:
    drawn = parsed(histogram(("found", "truth"), [Bar("none", (4, 2)), Bar("more", (0, 1))]))
    heights = [float(each.get("height", "")) for each in drawn.iter("rect")]
    full = HEIGHT - BOTTOM - TOP
    assert heights == [full, full / 2, 0, pytest.approx(full / 4, abs=0.06)]
    assert [each.text for each in drawn.iter("title")][:2] == ["found, none: 4", "truth, none: 2"]
    assert "nan" not in histogram(("a",), []) and "nan" not in histogram(("a",), [Bar("none", (0,))])


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 550) == [0, 200, 400]
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.003, 0.004) == pytest.approx([-0.002, 0, 0.002, 0.004])
    assert ticks(5, 5) == [5]


def test_thinned_lines_keep_their_ends() -> None:
    points: Points = [(float(step), 1.0) for step in range(10_001)]
    few = thinned(points, 100)
    assert len(few) <= 102 and (few[0], few[-1]) == (points[0], points[-1])
    assert thinned(points[:100], 100) == points[:100]


def test_smooth() -> None:
    points = [(float(step), float(step % 2)) for step in range(1001)]
    assert smooth(points, 2)[-1] == (1000.0, 0.5)
    assert smooth(points, 1) == points
    assert smooth([(1.0, 4.0), (2.0, 2.0), (3.0, 0.0)], 2) == [(1.0, 4.0), (2.0, 3.0), (3.0, 1.0)]


def test_what_can_be_drawn() -> None:
    assert [is_drawable(each) for each in (1, 0.5, float("nan"), float("inf"), 1e12, None, "1", True)] == [
        True,
        True,
        *[False] * 6,
    ]
