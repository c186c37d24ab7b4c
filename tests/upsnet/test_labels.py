"""Class names of every script, and those that no font has, are drawn or said; none ends drawing."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import ImageFont

from upsnet import labels
from upsnet.categories import Categories
from upsnet.draw import overlay
from upsnet.labels import LONGEST, Label, clean, labels_of
from upsnet.result import PanopticResult, Segment


def table_of(*names: str) -> Categories:
    return Categories.from_coco([{"id": 7 + index, "name": name, "isthing": 1} for index, name in enumerate(names)])


def drawn(categories: Categories, index: int = 0) -> np.ndarray:
    ids = np.ones((200, 400), np.int32)
    result = PanopticResult(ids, [Segment(1, index, 0.9, ids.size, (0, 0, 400, 200))])
    return overlay(np.full((200, 400, 3), 90, np.uint8), result, categories)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The installed fonts, to be chosen by a test: none."""
    installed: list[str] = []
    monkeypatch.setattr(labels, "_installed", lambda: tuple(installed))
    labels._font_of.cache_clear()
    labels_of.cache_clear()
    yield installed
    labels._font_of.cache_clear()
    labels_of.cache_clear()


def test_without_a_font_the_id_and_one_warning(fonts: list[str], caplog: pytest.LogCaptureFixture) -> None:
    table = table_of("sky", "天空", "草地", "небо", "سماء")
    with caplog.at_level(logging.WARNING, "upsnet"):
        pictures = [drawn(table, index).tobytes() for index in range(len(table)) for _ in range(2)]
    assert len(set(pictures)) == len(table), "each is another picture"
    assert labels_of(table)[:2] == (Label("sky", None), Label(r"8 \u5929\u7a7a", None))
    (message,) = caplog.messages
    assert message.startswith("no installed font has the class names '天空', '草地', 'небо' and 1 more: their ids")


def test_a_font_is_taken_that_has_the_characters(
    fonts: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two fonts are installed, and one file that is none; the second has what Pillow's own lacks."""
    fonts += ["broken.ttf", "plain.ttf", "wide.ttf"]

    def open_font(path: str, size: int) -> ImageFont.FreeTypeFont:
        if path == "broken.ttf":
            raise OSError("unknown file format")
        return ImageFont.truetype(path, size)

    def has(font: str, characters: frozenset[str]) -> bool:
        return font == "wide.ttf" or all(character.isascii() for character in characters)

    monkeypatch.setattr(labels, "open_font", lambda path, size: path if path != "broken.ttf" else open_font(path, size))
    monkeypatch.setattr(labels.open_font, "__wrapped__", labels.open_font, raising=False)
    monkeypatch.setattr(labels, "_has", has)
    assert labels_of(table_of("sky", "天空")) == (Label("sky", None), Label("天空", "wide.ttf"))
    assert caplog.messages == []


def test_what_a_font_has_is_seen() -> None:
    own = labels.open_font(None, 16)
    assert labels._has(own, frozenset("road 0.9"))
    assert not labels._has(own, frozenset("road 天"))
    assert labels._has(own, frozenset("e\u0301\u200d")), "what has no width of its own is no fault of a font"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sky\n at\tday\r\n", "sky at day"),
        ("a\u2028b\x85c", "a b c"),
        ("\x1b[31mred\0", "[31mred"),
        ("[red]", "[red]"),
        ("x" * 100_000, "x" * (LONGEST - 3) + "..."),
        (" \n\0 ", ""),
    ],
)
def test_a_label_is_one_short_line(name: str, shown: str) -> None:
    assert clean(name) == shown


@pytest.mark.parametrize(
    "name",
    [
        *(
            "\n",
            "\0",
            " ",
            "\u200f",
            "\u202eabc",
            "e\u0301" * 30,
            "\U0001f468\u200d\U0001f469\u200d\U0001f467",
            "שמיים",
        ),
        *("क्षेत्र", "\ufffe", "\U0010ffff", "x" * 100_000, "%s %d {}", "[/]"),
    ],
    ids=ascii,
)
def test_no_name_ends_drawing(name: str) -> None:
    assert drawn(table_of(name)).shape == (200, 400, 3)
