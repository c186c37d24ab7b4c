"""What goes wrong under the viewer's page is said there, and does not stay."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.colours import ROWS, scene
from tests.browser.conftest import Networks, start_triton, viewer
from tests.browser.opened import Opened
from tests.browser.screenshots import Screenshots
from tests.conftest import photo_of
from tests.conftest import scene as scene_of_halves
from tests.upsnet.client.fake_server import FakeServer
from tests.upsnet.client.fake_server import server as server
from tests.upsnet.viewer.page import encoded

pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
from playwright.sync_api import Browser, expect

REFUSED = "the server responded with a status of"  # what the browser's console says of every answer from 400 on

SCRIPT = """() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
}"""


def too_large() -> bytes:
    """A small file of more pixels than are taken."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 5_001)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (scene()[:1000], "truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not a readable image"),
        (b"", "not a readable image"),
        (too_large(), "limit of 50000000"),
    ],
    ids=["cut off", "no photo", "empty", "too large"],
)
def test_a_photo_that_is_none_is_named_and_the_next_is_shown(
    opened: Opened, photo: bytes, content: bytes, said: str, screenshots: Screenshots
) -> None:
    opened.drop({"<b>bad.png": content}, state="error")
    alert = opened.page.get_by_role("alert")
    expect(alert).to_contain_text("<b>bad.png")
    expect(alert).to_contain_text(said)
    if said == "truncated":
        screenshots.take(opened.page, "A photo that is cut off")
    opened.drop({"good.png": photo})
    expect(alert).to_be_hidden()
    expect(opened.page.get_by_role("img", name="good.png: 2 person")).to_be_visible()
    opened.forgive(REFUSED)


def test_a_bad_photo_leaves_the_one_that_is_shown(opened: Opened, photo: bytes) -> None:
    opened.drop({"good.png": photo})
    opened.drop({"bad.png": b"no photo"}, state="error")
    expect(opened.page.get_by_role("img", name="good.png: 2 person")).to_be_visible()
    opened.point_at(*ROWS[6].inside)
    expect(opened.find("#pane-a .tip")).to_contain_text("dog")
    opened.forgive(REFUSED)


def test_a_huge_photo(opened: Opened) -> None:
    """12 megapixels are shown smaller; what is said and saved is of the photo's own size."""
    opened.choose(scene(3000, 4000), "huge.png")
    areas = opened.find("#segments button .figure:last-child").all_inner_texts()
    counted = [int(each.split(" px")[0].replace(",", "")) for each in areas]
    assert sum(counted) > 11_000_000
    opened.point_at(*ROWS[6].inside)
    expect(opened.find("#pane-a .tip")).to_contain_text("dog")
    width = opened.page.evaluate("() => document.querySelector('#pane-a canvas').width")
    assert width < 4000
    with opened.page.expect_download() as download:
        opened.find("#download-ids").click()
    assert Image.open(download.value.path()).size == (4000, 3000)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 5000)], ids=str)
def test_a_photo_that_is_thin_fits(opened: Opened, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(buffer, "PNG")
    opened.choose(buffer.getvalue(), "thin.png")
    for _ in range(2):  # when it comes, and after a look closer
        box = opened.find("#pane-a canvas").bounding_box()
        assert box is not None
        assert 8 <= box["width"] <= 1280 and 8 <= box["height"] <= 900
        assert opened.page.evaluate("() => document.querySelector('#last').getBoundingClientRect().top") < 1200
        opened.find("#zoom-in").click()
        assert (opened.find("#pane-a canvas").bounding_box() or box)["height"] > box["height"]
        opened.find("#zoom-fit").click()


def test_two_tabs_do_not_disturb_each_other(opened: Opened, photo: bytes) -> None:
    other = Opened(opened.page.context.new_page(), opened.folder)
    other.page.goto(opened.page.url)
    other.wait("empty")
    opened.choose(photo, "first.png")
    other.choose(scene(240, 320), "second.png")
    opened.compare("others.onnx")
    expect(opened.page.get_by_role("img", name="first.png: 2 person, 1 dog")).to_be_visible()
    expect(other.page.get_by_role("img", name="second.png: 2 person, 1 dog")).to_be_visible()
    expect(other.find("#pane-b")).to_be_hidden()
    other.page.reload()
    other.find("#photos button").filter(has_text="first.png").first.click()
    expect(other.page.get_by_role("img", name="first.png: 2 person, 1 dog")).to_be_visible()
    assert not other.faults, other.faults


def test_a_file_of_a_photo_that_another_tab_forgot_is_missed(opened: Opened, photo: bytes) -> None:
    opened.choose(photo)
    opened.page.evaluate("() => fetch('/api/photos', {method: 'DELETE'})")
    for link in ("#download-ids", "#download-json"):
        opened.drop({"bad.png": b"no photo"}, state="error")
        opened.find(link).click()
        expect(opened.page.get_by_role("alert")).to_contain_text("this one is gone; give it again")
    opened.forgive(REFUSED)


def test_another_network_at_the_same_address_is_asked_anew(
    browser: Browser, server: FakeServer, tmp_path: Path
) -> None:
    with viewer("--url", server.url) as address, Opened.of(browser, address, tmp_path) as opened:
        opened.choose(encoded(photo_of(scene_of_halves(0))), "photo.png")
        expect(opened.page.get_by_role("img", name="photo.png: ")).to_have_accessible_name(re.compile("sky"))
        asked = len(server.asked)
        found = [{**each.model_dump(), "name": f"new {each.name}"} for each in server.predictor.manifest.categories]
        manifest = {**server.predictor.manifest.model_dump(), "categories": found}
        server.predictor.manifest = type(server.predictor.manifest).model_validate(manifest)
        expect(opened.page.get_by_role("img", name="photo.png: ")).to_have_accessible_name(re.compile("new sky"))
        expect(opened.find("#segments")).to_contain_text("new sky")
        opened.page.wait_for_timeout(3000)  # one more look, which finds nothing new
        assert len(server.asked) == asked + 1


def test_a_server_that_dies_is_missed_and_taken_up_again(
    browser: Browser,
    networks: Networks,
    triton_environment: Path,
    photo: bytes,
    tmp_path: Path,
    screenshots: Screenshots,
) -> None:
    with start_triton(networks, triton_environment, tmp_path) as server:
        port = server.ports["grpc"]
        with (
            viewer("--url", f"grpc://{server.url}", "--compare", networks.others) as address,
            Opened.of(browser, address, tmp_path) as opened,
        ):
            opened.choose(photo, "before.png")
            server.stop(drain=0)
            opened.choose(photo, "while.png", state="error")
            alert = opened.page.get_by_role("alert")
            expect(alert).to_contain_text(f"127.0.0.1:{port}")
            screenshots.take(opened.page, "The server has died")
            opened.compare("others.onnx", side="a")
            expect(alert).to_be_hidden()
            expect(opened.page.get_by_role("img", name="while.png: 2 person, 1 cat")).to_be_visible()
            opened.compare(f"127.0.0.1:{port}", side="a", state="error")
            with start_triton(networks, triton_environment, tmp_path, port):
                opened.wait("shown")  # by itself
                expect(alert).to_be_hidden()
                expect(opened.page.get_by_role("img", name="while.png: 2 person, 1 dog")).to_be_visible()
            opened.forgive(REFUSED)


def test_a_viewer_that_has_gone_is_said(browser: Browser, networks: Networks, photo: bytes, tmp_path: Path) -> None:
    with viewer("--url", "grpc://127.0.0.1:9", "--compare", networks.colours) as address:
        running = Opened.of(browser, address, tmp_path)
        opened = running.__enter__()
        opened.compare("colours.onnx", side="a", state="empty")
        opened.choose(photo)
    opened.choose(photo, "late.png", state="error")
    expect(opened.page.get_by_role("alert")).to_contain_text("upsnet viewer")
    opened.forgive(REFUSED, "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
    running.__exit__(None, None, None)


def test_nothing_from_elsewhere_and_no_script_from_a_photo(opened: Opened, photo: bytes) -> None:
    """All that the page loads comes from the viewer, and its policy lets no script of a name or a photo run."""
    asked: list[str] = []
    opened.page.on("request", lambda request: asked.append(request.url))
    opened.page.reload()
    opened.drop({"<img src=x onerror=alert(1)>.png": photo})
    assert asked and all(each.startswith((opened.page.url, "blob:")) for each in asked)
    expect(opened.find("#photos")).to_contain_text("<img src=x onerror=alert(1)>.png")
    opened.page.evaluate(SCRIPT)
    assert opened.page.evaluate("() => window.ran") is None
    assert [each for each in opened.faults if "Content Security Policy" in each]
    opened.forgive("Content Security Policy")
