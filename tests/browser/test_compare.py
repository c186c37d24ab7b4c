"""Two models beside each other on the viewer's page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from serving.repository import check_parts
from serving.rollouts.steps import promote, stage
from tests.browser.colours import ROWS, rows_of_scene
from tests.browser.conftest import Networks, start_triton, viewer
from tests.browser.opened import Opened
from tests.browser.screenshots import Screenshots
from upsnet.contract import manifest_path

pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
from playwright.sync_api import Browser, expect

DOG, BALL, SKY = ROWS[6].inside, ROWS[7].inside, ROWS[1].inside


def test_differing_pixels_are_counted_and_marked(opened: Opened, photo: bytes, screenshots: Screenshots) -> None:
    """The server's model and another network in the viewer's process: the dog and the ball."""
    opened.choose(photo)
    before = {place: opened.pixel(*place) for place in (DOG, BALL, SKY)}
    opened.compare("others.onnx")
    areas = np.bincount(rows_of_scene().ravel())
    differing, pixels = areas[6] + areas[7], areas.sum()
    words = f"{differing:,} of {pixels:,} pixels differ ({100 * differing / pixels:.1f} %)"
    expect(opened.find("#difference")).to_contain_text(words)
    expect(opened.find("#pane-b canvas")).to_have_accessible_name(
        "scene.png: 2 person, 1 cat, sky, grass, house (6 segments)"
    )
    for pane in "ab":
        assert opened.pixel(*SKY, pane) == before[SKY]
        colours = {opened.pixel(x, y, pane) for x in range(DOG[0] - 8, DOG[0] + 8) for y in (DOG[1], DOG[1] + 3)}
        assert (255, 0, 255) in colours and before[DOG] not in colours
    screenshots.take(opened.page, "Two models side by side: where they differ is marked in both")
    opened.find("#show-difference").uncheck()
    assert opened.pixel(*DOG) == before[DOG] != opened.pixel(*DOG, "b")
    opened.point_at(*DOG, "b")
    expect(opened.find("#pane-b .tip")).to_contain_text("cat")
    expect(opened.find("#segments-b button")).to_have_count(6)
    expect(opened.find("#stages thead th")).to_have_count(2)


def test_one_network_in_two_runtimes_is_identical(opened: Opened, photo: bytes) -> None:
    opened.compare("colours.onnx")
    opened.choose(photo)
    expect(opened.find("#difference")).to_contain_text("identical")
    opened.compare("nothing")
    expect(opened.find("#difference")).to_be_hidden()
    expect(opened.find("#pane-b")).to_be_hidden()


def test_another_model_answers_for_the_photo_that_is_shown(opened: Opened, photo: bytes) -> None:
    opened.choose(photo)
    canvas = opened.find("#pane-a canvas")
    expect(canvas).to_have_accessible_name("scene.png: 2 person, 1 dog, 1 ball, sky, grass, house (7 segments)")
    opened.compare("others.onnx", side="a")
    expect(canvas).to_have_accessible_name("scene.png: 2 person, 1 cat, sky, grass, house (6 segments)")
    stages = opened.find("#stages tbody th").all_inner_texts()
    assert stages[:5] == ["waiting", "decode", "resize", "network", "restore"]


def test_a_candidate_beside_the_version_in_service(
    browser: Browser,
    networks: Networks,
    triton_environment: Path,
    photo: bytes,
    tmp_path: Path,
    screenshots: Screenshots,
) -> None:
    """It is staged, and promoted, while the page is open; the page has its versions by itself."""
    with (
        start_triton(networks, triton_environment, tmp_path) as server,
        viewer("--url", f"grpc://{server.url}") as address,
        Opened.of(browser, address, tmp_path) as opened,
    ):
        opened.choose(photo)
        record = stage(server.repository, check_parts(networks.others, manifest_path(networks.others)))
        opened.compare("Version 2")
        expect(opened.find("#pane-a figcaption")).to_contain_text("In service (version 1)")
        expect(opened.find("#pane-b canvas")).to_have_accessible_name(re.compile("2 person, 1 cat, sky"))
        areas = np.bincount(rows_of_scene().ravel())
        expect(opened.find("#difference")).to_contain_text(f"{areas[6] + areas[7]:,} of")
        screenshots.take(opened.page, "The version in service beside the candidate")
        promote(server.repository, record, {}, 0.0)
        expect(opened.find("#model-a option").first).to_contain_text("In service (version 2)")
        opened.choose(photo, "after.png")
        expect(opened.find("#pane-a canvas")).to_have_accessible_name(re.compile("after.png: 2 person, 1 cat, sky"))
