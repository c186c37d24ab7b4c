"""training.html and the page of `upsnet runs compare`, of made-up runs, opened from the disk."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.browser.opened import HOW, WIDER, Opened
from tests.browser.screenshots import Screenshots
from tests.upsnet.history.runs import (
    ABSENT,
    CONFIG,
    HOSTILE,
    a_class,
    an_evaluation,
    losses,
    make_run,
    qualities,
    spread,
)
from upsnet.history.compare import compare
from upsnet.history.compare_page import write_comparison
from upsnet.history.observed import Picture
from upsnet.history.page import write_page
from upsnet.history.run import read_run
from upsnet.pictures import embed

pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
from playwright.sync_api import Browser

LONG = "a_photo_whose_name_goes_on_and_on_without_a_single_space_to_break_it_at_" * 2 + ".jpg"
PAGES = ("a run", "a run that evaluates nothing", "a comparison")
GROUND = {"light": (246, 247, 249), "dark": (16, 19, 24), "phone": (246, 247, 249)}  # --page of page.css
TURNED = """() => [...document.querySelectorAll(".kind, .example h3 > span")].filter((each) => {
    const left = (place) => {
        const letter = document.createRange();
        letter.setStart(each.firstChild, place);
        letter.setEnd(each.firstChild, place + 1);
        return letter.getBoundingClientRect().left;
    };
    return left(0) >= left(1);
}).map((each) => each.textContent)"""
COLOUR = "([selector, key]) => getComputedStyle(document.querySelector(selector))[key]"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PAGES -> file: addresses. Long names, names that would be markup, all six colours of lines, a warning."""
    folder = tmp_path_factory.mktemp("runs")
    others = [a_class(HOSTILE, 0.0, 4), a_class("a-rather-long-name-of-a-class-merged", 0.5, 5)]
    others += [a_class("bear", 0.0, 6, True, **ABSENT)]
    tables = [
        [a_class("grass", pq), a_class("sky", 0.6, 2), a_class("person", 0.9 - pq, 3, True), *others]
        for pq in (0.2, 0.45, 0.5)
    ]
    rows = losses(range(1, 61), gpu_gib=3.5, grad_norm=1.25, data_share=0.4)
    rows += [row | {"miou": 0.4, "box_ap": 0.1, "pq_things": 0.2} for row in qualities({20: 0.25, 40: 0.5, 60: 0.55})]
    gap = {"training": spread(0.8)}  # points over the validation images: a warning
    evaluations = [an_evaluation(step, table, **gap) for step, table in zip((20, 40, 60), tables, strict=True)]
    whole = make_run(folder / "whole", rows, evaluations)
    silent = make_run(folder / "silent", losses(range(1, 31)), [], CONFIG + "  evaluate_every: 0\n")
    config = CONFIG.replace("0.1", "0.2")
    more = [make_run(folder / name, rows[5:], evaluations[:1], config) for name in (LONG, "c", "d", "e")]
    photo = embed(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    worst = [Picture(place / 10, place, name, *[photo] * 3) for place, name in enumerate(("a.png", LONG, HOSTILE))]
    compared = folder / "compare.html"
    write_comparison(compared, compare([read_run(each) for each in (whole, silent, *more)]))
    files = (write_page(whole, worst), write_page(silent, []), compared)
    return dict(zip(PAGES, (each.as_uri() for each in files), strict=True))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PAGES)
def test_axe_core_finds_nothing(
    browser: Browser,
    axe_core: str,
    pages: dict[str, str],
    tmp_path: Path,
    name: str,
    how: str,
    screenshots: Screenshots,
) -> None:
    with Opened.of(browser, pages[name], tmp_path, state=None, **HOW[how]) as opened:
        screenshots.take(opened.page, f"{name.capitalize()}, {how}")
        assert opened.page.evaluate(WIDER) == 0, "the page is as wide as the window"
        assert colour(opened, "body", "backgroundColor") == GROUND[how]
        card = colour(opened, ".card", "backgroundColor")
        assert contrast(colour(opened, ".plot text", "fill"), card) >= 4.5, "axe-core does not look into SVG"
        lines = range(1, 7 if name == "a comparison" else 2)
        for line in lines:
            assert contrast(colour(opened, f".plot .line-{line}", "stroke"), card) >= 3
        assert opened.findings(axe_core) == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_from_elsewhere_and_nothing_from_names(
    browser: Browser, pages: dict[str, str], tmp_path: Path, name: str
) -> None:
    asked: list[str] = []
    with Opened.of(browser, pages[name], tmp_path, state=None) as opened:
        opened.page.on("request", lambda request: asked.append(request.url))
        opened.page.reload()
        opened.page.wait_for_load_state("networkidle")
        assert {each for each in asked if not each.startswith("data:")} == {pages[name]}
        assert opened.page.evaluate("() => document.scripts.length") == 0
        assert opened.page.evaluate(TURNED) == [], "words after a name that turns the direction of writing"


@pytest.mark.parametrize("how", ["light", "phone"])
def test_a_click_enlarges_a_picture_and_another_one_ends_it(
    browser: Browser, pages: dict[str, str], tmp_path: Path, how: str, screenshots: Screenshots
) -> None:
    with Opened.of(browser, pages["a run"], tmp_path, state=None, **HOW[how]) as opened:
        picture, window = opened.find("figure img").first, opened.page.viewport_size
        small = picture.bounding_box()
        picture.click()
        large = picture.bounding_box()
        assert small and large and window and (large["width"], large["height"]) == (window["width"], window["height"])
        screenshots.take(opened.page, f"An enlarged picture, {how}", whole=False)
        opened.page.mouse.click(window["width"] / 2, window["height"] / 2)
        after = picture.bounding_box()
        assert after and after["width"] == small["width"], "a mouse and a finger find the way back"


def colour(opened: Opened, selector: str, key: str) -> tuple[int, int, int]:
    """The computed one of the first such element."""
    red, green, blue = re.findall(r"\d+", opened.page.evaluate(COLOUR, [selector, key]))
    return int(red), int(green), int(blue)


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """WCAG 2's contrast ratio."""
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: tuple[int, int, int]) -> float:
    linear = [each / 12.92 if (each := value / 255) <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
