"""What the pixels of masks mean: grey values and colours -> classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.datasets.conversion.class_files import ClassRow, ClassTable, numbered, parse_color
from upsnet.datasets.conversion.mask_files import TRANSPARENT, Pixels, read_pixels
from upsnet.errors import InputError
from upsnet.photos import MAX_PIXELS, reading_photo

UNLABELLED = -1  # in place of a class: nobody labelled the pixel, which is 0 or black, and no class is that
USUAL_IGNORED = 255
IGNORED = "(ignored)"  # the name of no class: of values that are void
GREY = 0x010101  # times a value: the colour that shows it
SHOWN = 8
BLURRED = 40  # values without a class in one mask: somebody resized or compressed it


class Legend(NamedTuple):
    """A table of classes as masks are read with it. The place of a class is its index in `rows`."""

    where: str  # the file's name, for messages
    rows: list[ClassRow]  # one for each name
    by_value: dict[int, int]  # grey value or index of the palette -> place
    by_color: dict[int, int]  # R + 256 G + 65536 B -> place
    valued: bool  # the table has values
    colored: bool  # and colours
    counted: bool  # its values are places in a list, so that a palette's colours come first

    @classmethod
    def of(cls, table: ClassTable, ignored: Sequence[str] | None = None) -> Legend:
        """Rows of one name are one class. ignored: values and colours that are void; None: 255 where it is no class.

        InputError for a value or a colour of two classes.
        """
        rows: list[ClassRow] = []
        valued, colored = (any(getattr(row, key) is not None for row in table.rows) for key in ("value", "color"))
        legend = cls(str(table.path), rows, {}, {}, valued, colored, table.counted)
        places: dict[str, int] = {}
        for row in table.rows:
            place = places.setdefault(row.name, len(rows))
            if place == len(rows):
                rows.append(row._replace(void=row.is_void))
            legend._add(row.value, None if row.color is None else code_of(row.color), place, row.name)
        if not valued and not colored:
            raise InputError(f"{table.path}: has neither values nor colours, by which masks are read; add a column")
        rows[:] = [*numbered(rows), ClassRow(IGNORED, 0, void=True)]
        for text in ignored or ():
            value, color = int(text) if text.strip().isdecimal() else None, parse_color(text)
            if value is None and color is None:
                raise InputError(f"--ignore {text}: give a value, as 255, or a colour, as 224,224,192 or #e0e0c0")
            code = code_of(color) if color is not None and value is None else None
            legend._add(value, code, len(rows) - 1, f"--ignore {text}")
        if ignored is None:
            legend.by_value.setdefault(USUAL_IGNORED, len(rows) - 1)
        return legend

    def remarks(self) -> list[str]:
        """What is void without anybody having said so."""
        names = ", ".join(f"'{row.name}'" for row in self.rows[:-1] if row.void)
        cure = "--background NAME makes one class of all that are unlabelled"
        said = [f"pixels of {names} are void; --stuff NAME makes one a class"] if names else []
        if 0 not in (self.by_value if self.valued else self.by_color):
            said.append(f"what is 0 or black in the masks is of no class in {self.where}: unlabelled; {cure}")
        return said

    def _add(self, value: int | None, color: int | None, place: int, name: str) -> None:
        for code, table, word in ((value, self.by_value, "value"), (color, self.by_color, "colour")):
            if code is None:
                continue
            other = table.setdefault(code, place)
            if other != place:
                shown = code if word == "value" else _color_text(code)
                raise InputError(
                    f"{self.where}: {word} {shown} is of {_named(self, other)} and of '{name}'; give each its own"
                )


def code_of(color: tuple[int, int, int]) -> int:
    return color[0] | color[1] << 8 | color[2] << 16


def class_places(legend: Legend, pixels: Pixels, codes: np.ndarray, path: Path) -> np.ndarray:
    """int64, of each of a mask's different codes the place of its class, or UNLABELLED. InputError for one without."""
    given = codes.tolist()
    lookup = {**_lookup(legend, pixels, given, path), TRANSPARENT: UNLABELLED}
    unknown = [code for code in given if code not in lookup]
    if unknown:
        raise InputError(_complaint(legend, pixels, unknown, path))
    return np.array([lookup[code] for code in given], np.int64)


def values_in(path: Path) -> str:
    """What the pixels of a mask hold, in words, for who is to write a table."""
    with reading_photo(str(path)), Image.open(path) as image:
        size = image.size[::-1]
    pixels = read_pixels(path, size) if size[0] * size[1] <= MAX_PIXELS else size
    if not isinstance(pixels, Pixels):
        return ""
    codes = [code for code in np.unique(pixels.codes).tolist() if code != TRANSPARENT]
    more = ", ..." if len(codes) > SHOWN else ""
    return ", ".join(_shown(pixels, code) for code in codes[:SHOWN]) + more


def _lookup(legend: Legend, pixels: Pixels, codes: list[int], path: Path) -> dict[int, int]:
    """Code -> place, of those that the table has, and 0 or black."""
    by_value, by_color = {0: UNLABELLED} | legend.by_value, {0: UNLABELLED} | legend.by_color
    if pixels.kind == "colors" and not legend.colored:  # greys that somebody wrote as colours
        by_color |= {value * GREY: place for value, place in by_value.items() if 0 <= value < 256}
        if any(code not in by_color and code != (code & 255) * GREY for code in codes if code != TRANSPARENT):
            raise InputError(f"{path}: holds colours, and {legend.where} has none; add the columns r, g, b")
    if pixels.kind == "colors":
        return by_color
    if pixels.kind == "grey" and not legend.valued:
        return by_value | {code & 255: place for code, place in by_color.items() if code == (code & 255) * GREY}
    if pixels.kind == "grey":
        return by_value
    colors = dict(enumerate(pixels.palette))
    colored = {code: by_color[colors[code]] for code in codes if colors.get(code) in by_color}
    if legend.colored and (legend.counted or not legend.valued):
        return _ignored(legend) | colored
    for code in codes:
        if code in by_value and colored.get(code, UNLABELLED) not in (UNLABELLED, by_value[code]):
            index, color = (_named(legend, place) for place in (by_value[code], colored[code]))
            said = f"{path}: index {code} of its palette is {index} by value, and {color} by its colour"
            raise InputError(f"{said}; take either the values or the colours out of {legend.where}")
    return by_value


def _ignored(legend: Legend) -> dict[int, int]:
    return {value: place for value, place in legend.by_value.items() if place == len(legend.rows) - 1}


def _named(legend: Legend, place: int) -> str:
    return "unlabelled" if place == UNLABELLED else f"'{legend.rows[place].name}'"


def _complaint(legend: Legend, pixels: Pixels, unknown: list[int], path: Path) -> str:
    code = unknown[0]
    y, x = np.argwhere(pixels.codes == code)[0]
    count = int((pixels.codes == code).sum())
    more = f" (and {len(unknown) - 1} more values)" if len(unknown) > 1 else ""
    said = f"{path}: {_shown(pixels, code)} is of no class in {legend.where}: {count} pixels, the first at x {x}, y {y}"
    if len(unknown) > BLURRED:
        return f"{said}{more}; so many come of JPEG or of resizing with blending: export the masks again, as PNG"
    return f"{said}{more}; add it there, or make it void: --ignore {_written(pixels, code)}"


def _shown(pixels: Pixels, code: int) -> str:
    if pixels.kind == "palette":
        color = f" ({_color_text(pixels.palette[code])})" if code < len(pixels.palette) else ""
        return f"index {code}{color}"
    return f"value {code}" if pixels.kind == "grey" else f"colour {_color_text(code)}"


def _written(pixels: Pixels, code: int) -> str:
    return str(code) if pixels.kind != "colors" else _color_text(code)


def _color_text(code: int) -> str:
    return f"{code & 255},{code >> 8 & 255},{code >> 16}"
