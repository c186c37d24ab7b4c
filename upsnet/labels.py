"""What stands on a segment: its category's name in a font that has the characters, else the category's id and codes."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

from upsnet.categories import Categories

logger = logging.getLogger("upsnet")

LONGEST = 40  # characters of a name that are drawn
NO_CHARACTER = "\U0010ffff"  # never one: a font draws its sign for what it lacks
FIGURES = " .0123456789"  # of scores
# Of explicit embeddings, overrides and isolates, by Unicode's bidirectional algorithm (UAX 9).
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# In this order: a name in a plain font looks better than one in italics.
SPECIAL = ("bold", "black", "light", "thin", "italic", "oblique", "condensed", "narrow", "mono", "serif", "math")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Label(NamedTuple):
    text: str  # one line
    font: str | None  # the file; None: Pillow's own


@lru_cache(16)
def labels_of(categories: Categories) -> tuple[Label, ...]:
    """One for each category, in the table's order. Warns once, of all names for which no installed font is found."""
    found, lacking = [], []
    for category in categories:
        name = clean(category.name)
        if not name or not (fonts := _font_of(frozenset(name + FIGURES))):
            lacking.append(category.name)
            codes = name.encode("ascii", "backslashreplace").decode()
            found.append(Label(_cut(f"{category.id} {codes}".rstrip()), None))
        else:
            found.append(Label(name, fonts[0]))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        logger.warning(
            "no installed font has the class names %s%s: their ids and characters' codes are drawn; install one "
            "(Debian: fonts-noto-cjk, fonts-noto-core)",
            ", ".join(map(_quoted, lacking[:3])),
            more,
        )
    return tuple(found)


def clean(name: str) -> str:
    """One line of at most LONGEST characters, without those that control a terminal, a text's direction or nothing."""
    return _cut(" ".join("".join(character if _is_visible(character) else " " for character in name).split()))


def _is_visible(character: str) -> bool:
    return (
        unicodedata.category(character) not in ("Cc", "Cs", "Cn") and unicodedata.bidirectional(character) not in TURNS
    )


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _quoted(name: str) -> str:
    """Quoted, without line breaks, and as any terminal can print it."""
    return repr(name[:LONGEST]).encode("utf-8", "backslashreplace").decode()


@lru_cache(64)
def open_font(path: str | None, size: int) -> Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@cache
def _font_of(characters: frozenset[str]) -> tuple[str | None, ...]:
    """The first font that has all of them; () where none has."""
    for path in (None, *_installed()):
        try:
            font = open_font.__wrapped__(path, 16)  # not kept: there may be thousands
            if _has(font, characters):
                return (path,)
        except OSError:  # a font of pictures, or no font
            continue
    return ()


def _has(font: Font, characters: frozenset[str]) -> bool:
    absent = font.getmask(NO_CHARACTER)
    sign = (absent.size, bytes(absent))
    for character in characters:
        if character == " " or unicodedata.category(character)[0] in "MC":  # no width of its own
            continue
        mask = font.getmask(character)
        if (mask.size, bytes(mask)) == sign:
            return False
    return True


@cache
def _installed() -> tuple[str, ...]:
    """The font files of this machine, plain ones first."""
    found = {str(path) for folder in _folders() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    return tuple(sorted(found, key=lambda path: (sum(word in path.lower() for word in SPECIAL), path)))


def _folders() -> Iterator[Path]:
    home = Path(os.path.expanduser("~"))  # Path.home() raises where the user has none, as in containers
    data = [os.environ.get("XDG_DATA_HOME", str(home / ".local/share"))]
    data += os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    yield from (Path(folder) / "fonts" for folder in data)
    yield home / ".fonts"
    yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
