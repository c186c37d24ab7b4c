"""One photo on the viewer's page: how it comes in, and what is seen of it."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.browser.colours import HEIGHT, ROWS, VOID, WIDTH, rows_of_scene
from tests.browser.opened import Opened
from tests.browser.screenshots import Screenshots
from upsnet.datasets.coco_format import rgb2id

pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
from playwright.sync_api import Route, expect

DOG, BALL = ROWS[6].inside, ROWS[7].inside
WORDS = "2 person, 1 dog, 1 ball, sky, grass, house (7 segments)"
CLIPBOARD = """async (content) => {
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    const blob = new Blob([bytes], {type: "image/png"});
    await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""
PASTE = (
    """(transfer) => document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, cancelable: true}))"""
)


def plain(photo: bytes, x: int, y: int) -> tuple[int, ...]:
    return tuple(int(each) for each in np.asarray(Image.open(io.BytesIO(photo)))[y, x])


def test_a_dropped_photo_has_its_overlay_at_once(opened: Opened, photo: bytes, screenshots: Screenshots) -> None:
    screenshots.take(opened.page, "Before the first photo")
    opened.drop({"scene.png": photo})
    expect(opened.page.get_by_role("img", name=f"scene.png: {WORDS}")).to_be_visible()
    for row in ROWS.values():
        assert opened.pixel(*row.inside) != plain(photo, *row.inside)
    assert opened.pixel(*VOID) == plain(photo, *VOID)
    assert len(opened.find("#segments button").all()) == len(ROWS)
    expect(opened.find("#status")).to_contain_text("2 person, 1 dog, 1 ball, sky, grass, house")
    screenshots.take(opened.page, "A photo that was dropped: overlay, classes, segments, latency")


def test_several_photos_of_one_drop_are_all_kept(opened: Opened, photo: bytes) -> None:
    opened.drop({"first.png": photo, "second.png": photo, "third.png": photo})
    rows = opened.find("#photos button")
    expect(rows.filter(has_text="third.png")).to_have_count(1)
    rows.filter(has_text="second.png").first.click()
    expect(opened.page.get_by_role("img", name="second.png: ")).to_be_visible()
    opened.wait("shown")
    expect(rows.filter(has_text="second.png").first).to_have_attribute("aria-pressed", "true")


def test_a_photo_is_pasted(opened: Opened, photo: bytes) -> None:
    """With the keys, as browsers hand it over, and with the button."""
    opened.drop({"first.png": photo})
    transfer = opened.files({"pasted.png": photo})
    opened.page.evaluate(PASTE, transfer)
    expect(opened.page.get_by_role("img", name=f"pasted.png: {WORDS}")).to_be_visible()
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.drop({"between.png": photo})
    opened.page.evaluate(CLIPBOARD, opened.base64(photo))
    opened.find("#paste").click()
    expect(opened.page.get_by_role("img", name=re.compile(r"^pasted.*\.png: 2 person"))).to_be_visible()


def test_a_photo_is_taken_with_the_camera(opened: Opened, screenshots: Screenshots) -> None:
    """The browser's stand-in for a camera: a picture that moves."""
    opened.find("#camera").click()
    dialog = opened.page.get_by_role("dialog", name="Camera")
    expect(opened.find("#shoot")).to_be_enabled()
    screenshots.take(opened.page, "The camera (the browser's stand-in for one)")
    opened.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    opened.until(lambda: opened.page.evaluate("() => document.querySelector('#camera-picture').srcObject") is None)
    opened.find("#camera").click()
    expect(opened.find("#shoot")).to_be_enabled()
    opened.find("#shoot").click()
    opened.wait("shown")
    expect(dialog).to_be_hidden()
    expect(opened.page.get_by_role("img", name=re.compile(r"^camera .*\.jpg: "))).to_be_visible()


def test_the_pointer_on_a_segment_tells_what_it_is(opened: Opened, photo: bytes, screenshots: Screenshots) -> None:
    opened.choose(photo)
    tip = opened.find("#pane-a .tip")
    areas = np.bincount(rows_of_scene().ravel())
    for row, (category, score) in {4: ("person", "0.97"), 6: ("dog", "0.64"), 1: ("sky", "")}.items():
        opened.point_at(*ROWS[row].inside)
        expect(tip).to_contain_text(category)
        expect(tip).to_contain_text(f"{areas[row]:,} px, {100 * areas[row] / (HEIGHT * WIDTH):.1f} %")
        expect(tip).to_contain_text(f"score {score}" if score else "stuff")
        expect(opened.find(f"#segments button[data-id='{row}']")).to_have_class("lit")
    opened.point_at(*DOG)
    expect(tip).to_contain_text("dog")
    screenshots.take(opened.page, "The pointer on the dog")
    opened.point_at(*VOID)
    expect(tip).to_be_hidden()


def test_a_row_of_the_list_lights_its_segment(opened: Opened, photo: bytes) -> None:
    opened.choose(photo)
    before = opened.pixel(*DOG), opened.pixel(*BALL)
    opened.find("#segments button[data-id='6']").hover()
    opened.until(lambda: opened.pixel(*BALL) != before[1])
    dog, ball = np.array(opened.pixel(*DOG)), np.array(opened.pixel(*BALL))
    unlit = np.array(plain(photo, *BALL))
    assert np.abs(ball - unlit).sum() < np.abs(np.array(before[1]) - unlit).sum(), "the others go back"
    assert np.abs(dog - plain(photo, *DOG)).sum() >= np.abs(np.array(before[0]) - plain(photo, *DOG)).sum()


def test_an_answer_that_is_faster_than_its_picture(opened: Opened, photo: bytes) -> None:
    held: list[Route] = []
    opened.page.route("**/image", lambda route: held.append(route))
    opened.choose(photo, state="asking")
    opened.find("#segments button").first.wait_for(state="attached")  # the answer is there
    opened.wait("asking")
    held[0].continue_()
    opened.wait("shown")
    assert opened.pixel(*DOG) not in ((0, 0, 0), plain(photo, *DOG))


def test_what_is_drawn_is_switched(opened: Opened, photo: bytes) -> None:
    opened.choose(photo)
    drawn = opened.pixel(*DOG)
    opened.find("#show-segments").uncheck()
    assert opened.pixel(*DOG) == plain(photo, *DOG)
    opened.find("#show-segments").check()
    assert opened.pixel(*DOG) == drawn
    opened.find("#opacity").fill("0")
    assert opened.pixel(*DOG) == plain(photo, *DOG)
    opened.find("#opacity").fill("100")
    assert opened.pixel(*DOG) != drawn
    labels = opened.find("#pane-a .labels span")
    expect(labels.filter(has_text="dog 0.64")).to_have_count(1)
    opened.find("#show-labels").uncheck()
    expect(labels).to_have_count(0)
    border = ROWS[3].inside[0], 260  # the last of the house
    outlined = opened.pixel(*border)
    opened.find("#show-outlines").uncheck()
    assert opened.pixel(*border) != outlined


def test_a_class_is_switched_off(opened: Opened, photo: bytes, screenshots: Screenshots) -> None:
    opened.choose(photo)
    drawn = {row: opened.pixel(*each.inside) for row, each in ROWS.items()}
    opened.find("#classes").get_by_label("person").uncheck()
    for row, each in ROWS.items():
        assert (opened.pixel(*each.inside) == drawn[row]) == (row not in (4, 5))
    expect(opened.find("#segments button")).to_have_count(5)
    opened.point_at(*ROWS[4].inside)
    expect(opened.find("#pane-a .tip")).to_be_hidden()
    screenshots.take(opened.page, "Without the class person")


def test_files_have_what_is_shown(opened: Opened, photo: bytes) -> None:
    opened.choose(photo, "my scene.png")
    with opened.page.expect_download() as download:
        opened.find("#download-ids").click()
    assert download.value.suggested_filename == "my scene.png"
    ids = rgb2id(np.asarray(Image.open(download.value.path()).convert("RGB")))
    np.testing.assert_array_equal(ids, rows_of_scene())
    with opened.page.expect_download() as download:
        opened.find("#download-json").click()
    assert download.value.suggested_filename == "my scene.json"
    content = json.loads(download.value.path().read_text())
    (annotation,) = content["annotations"]
    assert [each["category_id"] for each in annotation["segments_info"]] == [1, 2, 3, 11, 11, 18, 37]
    assert [each["area"] for each in annotation["segments_info"]] == np.bincount(rows_of_scene().ravel())[1:].tolist()
    with opened.page.expect_download() as download:
        opened.find("#download-picture").click()
    picture = np.asarray(Image.open(download.value.path()).convert("RGB"))
    factor = picture.shape[1] // WIDTH
    assert tuple(picture[factor * 440, factor * 20]) == opened.pixel(20, 440)
