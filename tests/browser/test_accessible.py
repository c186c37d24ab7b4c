"""The viewer's page without a mouse, without a picture, on a phone, in the dark: and by the rules of axe-core."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.colours import ROWS
from tests.browser.opened import HOW, WIDER, Opened
from tests.browser.screenshots import Screenshots

pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
from playwright.sync_api import Browser, expect

FOCUSED = "() => document.activeElement.id || document.activeElement.textContent.trim()"
SMALL = """() => [...document.querySelectorAll("button, a[href], select, input, summary")]
    .map((each) => [each.id || each.textContent, (each.closest("label") ?? each).getBoundingClientRect()])
    .filter(([, box]) => box.width > 1 && (box.width < 24 || box.height < 24)).map(([name]) => name)"""
COLORS = "chips => chips.map((chip) => getComputedStyle(chip).backgroundColor)"


def nothing(opened: Opened, photo: bytes) -> None:
    pass


def one_model(opened: Opened, photo: bytes) -> None:
    opened.choose(photo)
    opened.point_at(*ROWS[6].inside)


def two_models(opened: Opened, photo: bytes) -> None:
    opened.compare("others.onnx")


def an_error(opened: Opened, photo: bytes) -> None:
    opened.choose(b"no photo", "bad.png", state="error")
    opened.forgive("status of 422")


def camera(opened: Opened, photo: bytes) -> None:
    opened.find("#camera").click()
    expect(opened.find("#shoot")).to_be_enabled()


@pytest.mark.parametrize("how", HOW)
def test_axe_core_finds_nothing(
    browser: Browser,
    address: str,
    axe_core: str,
    photo: bytes,
    tmp_path: Path,
    how: str,
    screenshots: Screenshots,
) -> None:
    with Opened.of(browser, address, tmp_path, **HOW[how]) as opened:
        for state in (nothing, one_model, two_models, an_error, camera):
            state(opened, photo)
            if how != "light":
                screenshots.take(opened.page, f"{state.__name__.replace('_', ' ').capitalize()}, {how}")
            assert opened.findings(axe_core) == [], state.__name__
            if how == "phone":
                assert opened.page.evaluate(WIDER) == 0, "the page is as wide as the phone"
                assert opened.page.evaluate(SMALL) == [], "a finger hits everything"


def test_forced_colours_keep_what_colours_tell(
    browser: Browser, address: str, photo: bytes, tmp_path: Path, screenshots: Screenshots
) -> None:
    """Chips and the mark keep their own; what is chosen has a border."""
    with Opened.of(browser, address, tmp_path, forced_colors="active") as opened:
        opened.choose(photo)
        two_models(opened, photo)
        opened.find("#segments button").first.click()
        screenshots.take(opened.page, "Forced colours")
        chips = opened.find("#segments .chip").evaluate_all(COLORS)
        assert len(set(chips)) == len(chips) == len(ROWS)
        assert "gradient" in opened.find(".mark").evaluate("each => getComputedStyle(each).backgroundImage")
        for chosen in opened.find("[aria-pressed='true']").all():
            assert chosen.evaluate("each => getComputedStyle(each).borderTopWidth") == "3px"
        other = opened.find("#segments button[aria-pressed='false']").first
        assert other.evaluate("each => getComputedStyle(each).borderTopWidth") != "3px"


def test_axe_core_would_find_something(opened: Opened, axe_core: str) -> None:
    opened.page.evaluate("() => document.querySelector('main').append(document.createElement('button'))")
    (finding,) = opened.findings(axe_core)
    assert finding.startswith("critical button-name: <button></button>")


def test_the_keyboard_is_enough(opened: Opened, photo: bytes, tmp_path: Path) -> None:
    page, press = opened.page, opened.page.keyboard.press

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            if page.evaluate(FOCUSED) == name:
                return
        raise AssertionError(f"Tab does not come to {name}")

    # Playwright does not wait until Chromium knows that the choosers are its own: on a busy machine the key came first.
    with page.expect_file_chooser() as chooser:
        tab_to("file")
        press("Space")
    (tmp_path / "scene.png").write_bytes(photo)
    chooser.value.set_files(tmp_path / "scene.png")
    opened.wait("shown")
    drawn = {row: opened.pixel(*each.inside) for row, each in ROWS.items()}
    tab_to("show-segments")
    press("Space")
    assert opened.pixel(*ROWS[6].inside) != drawn[6]
    press("Space")
    tab_to("opacity")
    press("End")
    expect(opened.find("#opacity-value")).to_have_text("100 %")
    first = opened.find("#segments button").first
    tab_to((first.text_content() or "").strip())
    press("End")
    expect(opened.find("#segments button").last).to_be_focused()
    press("ArrowUp")
    expect(opened.find("#segments button[data-id='6']")).to_be_focused()
    expect(opened.find("#segments button[data-id='6']")).to_have_class("lit")
    press("Enter")
    expect(opened.find("#segments button[data-id='6']")).to_have_attribute("aria-pressed", "true")
    press("Escape")
    expect(opened.find("#segments button[data-id='6']")).to_have_attribute("aria-pressed", "false")
    tab_to("download-picture")
    with page.expect_download() as download:
        press("Enter")
    assert download.value.suggested_filename == "scene_overlay.png"
    press("Shift+Tab")
    tab_to("camera")
    press("Enter")
    expect(opened.find("#shoot")).to_be_focused()
    press("Escape")
    expect(opened.find("#camera")).to_be_focused()


def test_a_screen_reader_is_told_what_is_there(opened: Opened, photo: bytes) -> None:
    """The tree that it reads: landmarks, headings, names, and what is said as it happens."""
    opened.compare("others.onnx")
    opened.choose(photo)
    page = opened.page
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text("UPSNet viewer")
    expect(page.get_by_role("img", name="scene.png: 2 person, 1 dog, 1 ball")).to_have_count(1)
    expect(page.get_by_role("img", name="scene.png: 2 person, 1 cat")).to_have_count(1)
    expect(page.get_by_role("status").filter(has_text="2 person, 1 dog, 1 ball, sky, grass, house")).to_have_count(1)
    expect(page.get_by_role("group", name="Classes").get_by_role("checkbox", name="dog")).to_be_checked()
    expect(page.get_by_role("slider", name="Opacity")).to_have_value("50")
    expect(page.get_by_role("combobox", name="Compare with")).to_have_count(1)
    tree = page.locator("body").aria_snapshot()
    assert re.search(r'button "dog score 0\.64 [\d,]+ px, [\d.]+ %"', tree), tree
    assert re.search(r'row "network [\d.]+ m?s"', tree) or 'rowheader "network"' in tree, tree
    headings = [int(level) for level in re.findall(r"heading .*\[level=(\d)\]", tree)]
    assert headings[0] == 1 and all(after - before <= 1 for before, after in pairwise(headings))


def test_what_moves_is_still_for_who_wants_that(browser: Browser, address: str, photo: bytes, tmp_path: Path) -> None:
    with Opened.of(browser, address, tmp_path, reduced_motion="reduce") as opened:
        opened.choose(photo)
        assert opened.page.evaluate("() => document.getAnimations().length") == 0
