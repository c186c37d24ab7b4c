"""What the viewer's server answers, and what it refuses."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CATEGORIES, FakePredictor, Halves, photo_of, scene
from tests.upsnet.viewer.page import Page, encoded, running, unpacked
from upsnet.categories import Categories
from upsnet.datasets.coco_format import rgb2id
from upsnet.errors import InputError
from upsnet.model import Model
from upsnet.parity.pixels import identical_pixels
from upsnet.runtimes.predictor import Predictor
from upsnet.viewer import app, guard
from upsnet.viewer.album import VIEW_PIXELS, view_size
from upsnet.viewer.models import OwnModel

PHOTO = photo_of(scene(0))  # 48 x 64
OTHER_CLASSES = Categories.from_coco([*CATEGORIES[:3], {**CATEGORIES[3], "name": "sea"}])


def broken() -> Predictor:
    raise InputError("runs/x: no such run")


def others() -> Predictor:
    manifest = FakePredictor("x").manifest
    return Halves(manifest.model_copy(update={"categories": list(OTHER_CLASSES)}))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    models = [
        OwnModel("m0", "Fake, runs/a", "runs/a", lambda: FakePredictor("a")),
        OwnModel("m1", "Fake, runs/b", "runs/b", lambda: FakePredictor("b", permute=True, damage=((48, 64), 0.25))),
        OwnModel("broken", "Broken", "runs/x", broken),
        OwnModel("halves", "Halves", "halves", Halves),
        OwnModel("others", "Others", "others", others),
        OwnModel("unasked", "Unasked", "unasked", Halves),
    ]
    with running(models) as opened:
        yield opened


def test_the_page_and_what_it_needs_come_from_here_alone(page: Page) -> None:
    html = page.get("/")
    assert html.status == 200 and html.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"http:" not in html.body and b"https:" not in html.body and b"style=" not in html.body
    for name in ("main.js", "pane.js", "style.css", "icon.svg"):
        found = page.get(f"/{name}")
        assert found.status == 200 and found.body, name
        assert page.ask("POST", f"/{name}").status == 405
    for path in ("/app.py", "/static/main.js", "/../app.py", "/%2e%2e/app.py", "/main.js/", "//etc/passwd", "/api/x"):
        assert page.get(path).status in (307, 404), path


@pytest.mark.parametrize("path", ["/", "/api/models", "/nothing", "/api/photos/x/image"])
def test_every_answer_binds_the_browser(page: Page, path: str) -> None:
    headers = page.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"] and "*" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers and "Server" not in headers


def test_a_photo_is_answered_as_by_the_library(page: Page) -> None:
    content = encoded(PHOTO)
    photo = page.give(content, "street.png")
    assert (photo["name"], photo["size"]) == ("street.png", [48, 64])
    answer = page.answer(photo, "m0")
    expected = Model(FakePredictor("a")).predict(content)
    np.testing.assert_array_equal(unpacked(answer["map"]), expected.ids)
    keys = ("id", "category_id", "name", "isthing", "score", "area", "box")
    told = [{key: each[key] for key in keys} for each in answer["segments"]]
    assert told == expected.to_dict()["segments"]
    assert answer["words"] == expected.describe() and answer["size"] == [48, 64]
    names = [stage["name"] for stage in answer["stages"]]
    assert names == ["waiting", "opening, once", "decode", "resize", "network", "restore", "packing"]
    assert all(stage["seconds"] > 0 for stage in answer["stages"])
    again = [stage["name"] for stage in page.answer(photo, "m0")["stages"]]
    assert again == ["waiting", "decode", "resize", "network", "restore", "packing"]  # it is opened once
    for segment in answer["segments"]:
        x, y = segment["point"]  # of its label: inside it
        assert expected.ids[int(y * 48), int(x * 64)] == segment["id"]


def test_the_files_are_the_official_format(page: Page) -> None:
    content = encoded(PHOTO)
    photo = page.give(content, "street%20%C3%BC.png")
    page.answer(photo, "m0")
    expected = Model(FakePredictor("a")).predict(content)
    png = page.get(f"/api/photos/{photo['id']}/answers/m0/ids.png")
    np.testing.assert_array_equal(rgb2id(np.asarray(Image.open(io.BytesIO(png.body)))), expected.ids)
    told = page.get(f"/api/photos/{photo['id']}/answers/m0/coco.json")
    name = unquote(told.headers["Content-Disposition"].rpartition("''")[2])
    assert name == "street ü.json" and told.headers["Content-Disposition"].startswith("attachment;")
    content = told.json()
    (image,), (annotation,) = content["images"], content["annotations"]
    assert (image["width"], image["height"]) == (64, 48)
    assert annotation["file_name"] == image["file_name"] == "street ü.png" and annotation["image_id"] == image["id"]
    areas = {each["id"]: each["area"] for each in annotation["segments_info"]}
    assert areas == {id: (expected.ids == id).sum() for id in np.unique(expected.ids) if id}
    assert [each["id"] for each in content["categories"]] == [9, 200, 3, 7]


def test_a_large_photo_is_shown_smaller_and_counted_in_full(page: Page) -> None:
    photo = page.give(encoded(np.zeros((2501, 3001, 3), np.uint8), "JPEG"), "large.jpg")
    shown = Image.open(io.BytesIO(page.get(f"/api/photos/{photo['id']}/image").body))
    assert shown.size[::-1] == view_size(2501, 3001) and shown.width * shown.height <= VIEW_PIXELS
    answer = page.answer(photo, "halves")
    assert unpacked(answer["map"]).shape == shown.size[::-1]
    assert sum(segment["area"] for segment in answer["segments"]) == 2501 * 3001
    png = page.get(f"/api/photos/{photo['id']}/answers/halves/ids.png")
    assert Image.open(io.BytesIO(png.body)).size == (3001, 2501)


def test_a_turned_photo_stands_upright(page: Page) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = page.give(encoded(np.full((40, 60, 3), 90, np.uint8), "JPEG", exif=exif), "turned.jpg")
    assert photo["size"] == [60, 40]
    shown = Image.open(io.BytesIO(page.get(f"/api/photos/{photo['id']}/image").body))
    assert shown.size == (40, 60) and not shown.getexif()
    assert unpacked(page.answer(photo, "m0")["map"]).shape == (60, 40)


def test_where_two_models_differ(page: Page) -> None:
    content = encoded(PHOTO)
    photo = page.give(content)
    for model in ("m0", "m1"):
        page.answer(photo, model)
    found = page.get(f"/api/photos/{photo['id']}/difference?a=m0&b=m1").json()
    one, two = (
        Model(FakePredictor("x", permute=permute, damage=damage)).predict(content).result
        for permute, damage in ((False, None), (True, ((48, 64), 0.25)))
    )
    expected = ~identical_pixels(one, two)
    assert expected[:12].all() and not expected[24:, 40:].any()  # a quarter is void in the second
    assert (found["differing"], found["pixels"]) == (expected.sum(), 48 * 64)
    np.testing.assert_array_equal(unpacked(found["map"]), expected)
    same = page.get(f"/api/photos/{photo['id']}/difference?a=m0&b=m0").json()
    assert same["differing"] == 0 and not unpacked(same["map"]).any()


def test_models_of_different_classes_are_not_compared(page: Page) -> None:
    photo = page.give(encoded(PHOTO))
    for model in ("m0", "others"):
        page.answer(photo, model)
    found = page.get(f"/api/photos/{photo['id']}/difference?a=m0&b=others").json()
    assert found == {"classes": "9 'sky' (stuff) in A, 'sea' (stuff) in B"}


BAD = {
    "nothing": b"",
    "no image": b"hello",
    "cut off": encoded(PHOTO)[:200],
    "a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "too many pixels": b"P6 65536 65536 255\n",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_photo_is_one_line(page: Page, content: bytes) -> None:
    reply = page.ask("POST", "/api/photos?name=bad.jpg", content)
    told = reply.json()
    assert reply.status == 422 and told["kind"] == "photo" and told["error"].startswith("bad.jpg: ")
    assert "\n" not in told["error"] and "/" not in told["error"].replace("image/", "")


def test_a_body_that_is_too_large_is_not_read(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_PHOTO_BYTES", 1000)
    told = page.ask("POST", "/api/photos", bytes(1001))
    assert told.status == 413 and told.json()["kind"] == "photo"
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as sender:  # which does not say how much comes
        sender.sendall(b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sender.sendall(b"3e9\r\n" + bytes(1001) + b"\r\n")  # and has not ended
        assert sender.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_given_up(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "READ_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as slow:
        slow.sendall(b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nhalf")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_photos_that_never_end_do_not_fill_the_memory(page: Page) -> None:
    head = b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nhalf"
    with ExitStack() as stack:
        for _ in range(app.MOST_ARRIVING):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=20))
            slow.sendall(head)
        until = time.monotonic() + 20
        while page.ask("POST", "/api/photos", encoded(PHOTO)).status != 503:  # until the last of them is being read
            assert time.monotonic() < until
    while page.ask("POST", "/api/photos", encoded(PHOTO)).status != 201:  # they have gone
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/api/photos/unknown/answers?model=m0", "forgotten"),
        ("GET", "/api/photos/unknown/image", "forgotten"),
        ("POST", "/api/photos/{photo}/answers?model=unknown", "forgotten"),
        ("POST", "/api/photos/{photo}/answers", "forgotten"),
        ("GET", "/api/photos/{photo}/answers/m1/ids.png", "forgotten"),
        ("GET", "/api/photos/{photo}/difference?a=m0&b=m1", "forgotten"),
        ("POST", "/api/photos/{photo}/answers?model=broken", "server"),
    ],
)
def test_what_cannot_be_answered_says_why(page: Page, method: str, path: str, kind: str) -> None:
    photo = page.give(encoded(PHOTO))
    reply = page.ask(method, path.format(photo=photo["id"]))
    assert (reply.status, reply.json()["kind"]) == ({"forgotten": 404, "server": 502}[kind], kind)


def test_the_models_tell_how_they_are(page: Page) -> None:
    photo = page.give(encoded(PHOTO))
    assert page.ask("POST", f"/api/photos/{photo['id']}/answers?model=broken").json()["error"] == "runs/x: no such run"
    page.answer(photo, "m0")
    told = {model["id"]: model for model in page.get("/api/models").json()["models"]}
    assert (told["m0"]["state"], told["m0"]["classes"]) == ("ready", ["sky", "grass", "dog", "cat"])
    assert (told["broken"]["state"], told["broken"]["reason"]) == ("failed", "runs/x: no such run")
    assert told["unasked"]["state"] == "waiting"


STRANGERS = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": ""},
    {"Host": "192.168.1.7"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Host": "localhost", "Origin": "https://localhost"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
def test_other_web_pages_are_refused(page: Page, headers: dict[str, str]) -> None:
    count = len(list(page.album))
    reply = page.ask("POST", "/api/photos", encoded(PHOTO), headers)
    assert (reply.status, reply.json()["kind"]) == (403, "stranger")
    assert page.ask("GET", "/", headers=headers).status == 403
    assert len(list(page.album)) == count


def test_its_own_page_is_answered_and_links_lead_to_it(page: Page) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert page.ask("GET", "/", headers=link).status == 200
    for host in (f"127.0.0.1:{page.port}", "localhost:9", "[::1]:9", "LOCALHOST"):
        assert page.ask("GET", "/api/models", headers={"Host": host, "Origin": f"http://{host}"}).status == 200


def test_the_last_photos_are_listed_until_they_are_forgotten(page: Page) -> None:
    ids = [page.give(encoded(PHOTO), f"{number}.png")["id"] for number in range(3)]
    listed = page.get("/api/photos").json()["photos"]
    assert [each["id"] for each in listed[:3]] == ids[::-1]
    assert Image.open(io.BytesIO(page.get(f"/api/photos/{ids[0]}/thumb").body)).size == (64, 48)
    assert page.ask("DELETE", "/api/photos").status == 204
    assert page.get("/api/photos").json() == {"photos": []}
    assert page.get(f"/api/photos/{ids[0]}/image").status == 404
