"""The album, the guard and the command line of the viewer, without its server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import FakePredictor, Halves, photo_of, scene
from tests.upsnet.viewer.page import encoded, unpacked
from upsnet.errors import InputError
from upsnet.model import Model
from upsnet.runtimes.options import RuntimeOptions
from upsnet.viewer import guard
from upsnet.viewer.album import Album, Answer, Entry, open_photo, photo_name, view_size
from upsnet.viewer.command import listen, main
from upsnet.viewer.difference import difference
from upsnet.viewer.models import Models


def entry(size: int, id: str = "") -> Entry:
    return Entry(id or os.urandom(8).hex(), "x", bytes(size), (1, 1), b"", "PNG", b"")


def test_the_album_keeps_the_newest() -> None:
    album = Album(most_photos=3, most_bytes=1000)
    for id in "abcd":
        album.add(entry(10, id))
    assert [each.id for each in album] == ["d", "c", "b"]
    with pytest.raises(KeyError):
        album.find("a")
    album.add(entry(985, "e"))
    assert [each.id for each in album] == ["e", "d"]
    album.add(entry(5000, "f"))  # which is shown now, whatever its size
    assert [each.id for each in album] == ["f"]


def test_answers_count_too() -> None:
    album = Album(most_bytes=1000)
    album.add(entry(400, "a"))
    album.add(entry(400, "b"))
    answer = Answer.of(Model(FakePredictor("x")).predict(photo_of(scene(0))), "x")
    album.keep(album.find("b"), "m0", replace(answer, packed=bytes(300)))
    assert [each.id for each in album] == ["b"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("street.jpg", "street.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.png", "a.png"),
        ("a\nb\r\x00\x1b.png", "a b .png"),
        ("a\u202egpj.png\u2067", "a gpj.png"),  # which would be read as "a" and "gnp.jpg"
        ("", "photo"),
        ("dir/", "photo"),
        ("ü" * 100 + ".png", "ü" * 37 + "..."),
    ],
)
def test_a_photos_name_is_one_short_line_without_a_path(given: str, name: str) -> None:
    assert photo_name(given) == name


def test_a_view_has_no_more_pixels_than_the_page_can_work_on() -> None:
    assert view_size(427, 640) == (427, 640)
    for size in ((7000, 7000), (1, 50_000_000), (50_000, 1000)):
        height, width = view_size(*size)
        assert 1 <= height * width <= 6_000_000


def test_one_pixel_that_differs_is_seen_in_the_smaller_view() -> None:
    prediction = Model(Halves()).predict(np.zeros((3000, 3001, 3), np.uint8))
    answers = [Answer.of(prediction, "x")]
    prediction.ids[1777, 2222] = 0
    answers.append(Answer.of(prediction, "y"))
    found = difference(*answers)
    assert found["differing"] == 1
    assert unpacked(found["map"]).sum() == 1  # type: ignore[arg-type]


def test_what_shows_several_addresses_takes_names_of_none() -> None:
    for host in ("192.168.1.7:8010", "[fe80::1]:8010", "127.0.0.1"):
        assert guard.why_not(guard.Headers({"host": host}), local=False) is None
    assert guard.why_not(guard.Headers({"host": "evil.example"}), local=False)
    assert guard.why_not(guard.Headers({"host": "192.168.1.7"}), local=True)


def test_titles_tell_models_apart(tmp_path: Path) -> None:
    for path in ("a/model.onnx", "b/model.onnx", "c/other.onnx"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    sources = [RuntimeOptions(tmp_path / path) for path in ("a/model.onnx", "b/model.onnx", "c/other.onnx")]
    titles = [model.title for model in Models.of([], sources).told()]
    assert titles == [f"ONNX Runtime, {path}" for path in ("a/model.onnx", "b/model.onnx", "c/other.onnx")]
    assert [each.title for each in Models.of([], sources[1:]).told()] == [
        "ONNX Runtime, model.onnx",
        "ONNX Runtime, other.onnx",
    ]


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"^cannot listen on 127.0.0.1:{port}: .*in use.*; give another --port"):
            listen("127.0.0.1", port)
    for host in ("300.1.1.1", "192.0.2.1", "no such host", "x" * 70):
        with pytest.raises(
            InputError, match=rf"^cannot listen on {host}:0: .*; give an address of this machine as --host$"
        ):
            listen(host, 0)


@pytest.mark.parametrize(
    "options", [{"compare": ["nothing.onnx"]}, {"url": ["http://x/"]}, {"photos": Path("nothing")}]
)
def test_what_is_no_model_or_photo_ends_it(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (given,) = options.values()
    with pytest.raises(InputError, match=str(given[0] if isinstance(given, list) else given)):
        main(port=0, **options)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_is_none_ends_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the server has not started; its line above says why"):
        main(port=0, url=["127.0.0.1:1"], run=tmp_path / "gone")


def test_the_command_serves_the_page_until_ctrl_c(tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray(photo_of(scene(0))).save(tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "upsnet", "viewer", "--port", "0", "--photos", str(tmp_path)]
    command += ["--url", "127.0.0.1:1"]  # where nothing is
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            url = running.stdout.readline().split()[0]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=20) as page:
                assert b"<h1>" in page.read()
            with urllib.request.urlopen(f"{url}api/photos", timeout=20) as photos:
                assert photos.read().count(b'"id"') == 6
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 0 and not errors


def test_a_photo_that_the_page_shows_is_not_recompressed_where_it_is_small() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    opened = open_photo(encoded(pixels), "x.png")
    assert opened.kind == "PNG" and opened.stem == "x"
