"""The classes of some labels -> the categories of the data set: which are things, stuff or nothing."""

from __future__ import annotations

import colorsys
import difflib
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upsnet.categories import Category
from upsnet.datasets.conversion.class_files import ClassRow, numbered, read_class_table
from upsnet.datasets.conversion.labels import Color, LabelClass
from upsnet.datasets.panoptic_json import MOST_CATEGORIES
from upsnet.errors import InputError
from upsnet.json_values import breaks_line, is_visible

GOLDEN = 0.618033988749895


class Choice(NamedTuple):
    """What the user says of the classes, by their names."""

    things: Sequence[str] = ()
    stuff: Sequence[str] = ()
    void: Sequence[str] = ()  # their pixels belong to no category
    background: str | None = None  # the stuff category of pixels that no shape holds; None: they are void
    table: Path | None = None  # a file of classes (class_files.py): names, and ids, colours, things where it has them


class Table(NamedTuple):
    """What the data set's JSON lists, and where the classes went."""

    categories: list[Category]
    by_key: dict[Hashable, Category | None]  # of each class; None: void
    background: Category | None

    def to_coco(self) -> list[dict[str, Any]]:
        return [
            {"id": each.id, "name": each.name, "isthing": int(each.isthing), "color": list(each.color)}
            for each in self.categories
        ]


def make_table(classes: Sequence[LabelClass], choice: Choice) -> Table:
    """InputError for a name that no class has or that is asked to be two things, and for a class that is missing in
    the table which was given."""
    names = [each.name for each in classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two classes are named '{twice}'; give each its own name")
    kinds = _kinds(names, choice)
    known = None if choice.table is None else known_classes(choice.table)
    kept: list[Category] = []
    by_key: dict[Hashable, Category | None] = {}
    colors = {row.color for row in (known or {}).values() if row.color} | {each.color for each in classes if each.color}
    for each in classes:
        row = None if known is None else known.get(each.name)
        if row is None:
            row = ClassRow(each.name, each.id, color=each.color, void=each.void)
        usual = None if not row.void else "stuff" if each.name == choice.background else "void"
        chosen = kinds.get(each.name, usual)
        if chosen == "void":
            by_key[each.key] = None
            continue
        if known is not None and each.name not in known:
            cure = f"add it, or name it in --void; {nearest(each.name, known)}"
            if each.name != each.name.strip():
                cure = "the blanks at its ends count, which only a table in JSON can have; add it there, or rename it"
            raise InputError(f"{choice.table}: lacks the class '{each.name}' of the labels; {cure}")
        isthing = chosen == "things" if chosen else each.isthing if row.isthing is None else row.isthing
        by_key[each.key] = _category(row._replace(color=row.color or each.color, isthing=isthing), colors)
        kept.append(by_key[each.key])  # type: ignore[arg-type]
    used = {each.name for each in kept}
    others = [row for name, row in (known or {}).items() if name not in used and name not in choice.void]
    kept += [_category(row, colors) for row in others if not row.void]
    background = None
    if choice.background is not None:
        background = _background(choice.background, kept, colors)
        if background not in kept:
            kept.append(background)
    if not kept and not classes:
        raise InputError("the labels hold no shape, and so no class")
    _check(kept)
    return Table(kept, by_key, background)


def names_alike(classes: Sequence[LabelClass]) -> list[str]:
    """What is to be said of classes whose names somebody may have meant to be one."""
    alike: dict[str, list[str]] = {}
    for each in classes:
        alike.setdefault(" ".join(each.name.casefold().split()), []).append(repr(each.name))
    about = "classes whose names differ in blanks or capitals alone"
    return [f"{about}: {', '.join(names)}" for names in alike.values() if len(names) > 1]


KINDS = ("things", "stuff", "void")


def _kinds(names: Collection[str], choice: Choice) -> dict[str, str]:
    """Name -> what the user calls it, of KINDS."""
    kinds = {name: kind for kind, chosen in choice._asdict().items() if kind in KINDS for name in chosen}
    for kind in KINDS:
        for name in getattr(choice, kind):
            if name not in names:
                raise InputError(f"--{kind} {name}: no class has this name; {nearest(name, names)}")
            if kinds[name] != kind:
                raise InputError(f"'{name}' is among --{kind} and --{kinds[name]}; name it once")
    return kinds


def _check(kept: list[Category]) -> None:
    if not kept:
        raise InputError("no class is left: all are void")
    odd = next((each.name for each in kept if breaks_line(each.name) or not is_visible(each.name)), None)
    if odd is not None:
        raise InputError(f"the class {odd!r:.60}: its name has a line break or nothing that is visible; rename it")
    ids: dict[int, str] = {}
    for category in kept:
        if ids.setdefault(category.id, category.name) != category.name:
            raise InputError(f"'{ids[category.id]}' and '{category.name}' have the id {category.id}; give each its own")
    most = MOST_CATEGORIES - all(category.isthing for category in kept)  # without stuff: and a background
    if len(kept) > most:
        raise InputError(f"{len(kept)} classes; the most is {most}: name some in --void")


def known_classes(path: Path) -> dict[str, ClassRow]:
    """The classes of a table by name, each with an id: where the file has none, 1, 2, ... in its order. What is
    called background, void and the like is void."""
    known: dict[str, ClassRow] = {}
    for row in read_class_table(path).rows:
        known.setdefault(row.name, row._replace(void=row.is_void))
    return {row.name: row for row in numbered(list(known.values()))}


def _category(row: ClassRow, colors: set[Color]) -> Category:
    """A colour that is none of `colors`, to which it is added, where the row has none."""
    assert row.id is not None
    color = row.color or free_color(row.id, colors)
    colors.add(color)
    return Category(id=row.id, name=row.name, isthing=row.isthing is not False, color=color)


def _background(name: str, categories: list[Category], colors: set[Color]) -> Category:
    """The category of that name, which must be stuff, or a new one."""
    for category in categories:
        if category.name == name:
            if category.isthing:
                raise InputError(
                    f"--background {name}: this class is one of things; name it in --stuff, or take another"
                )
            return category
    number = max((category.id for category in categories), default=0) + 1
    return Category(id=number, name=name, isthing=False, color=free_color(number, colors))


def free_color(number: int, taken: Collection[Color]) -> Color:
    """A vivid colour that is not among `taken`: neighbouring numbers are a golden angle of hue apart."""
    shade = 0
    while True:
        hue, value = (number + 0.37 * shade) * GOLDEN % 1.0, 0.9 - 0.07 * (shade % 8)
        red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.65, value))
        if (red, green, blue) not in taken:
            return red, green, blue
        shade += 1


def nearest(name: str, names: Collection[str]) -> str:
    """ "did you mean ...?", or the first names that there are."""
    if close := difflib.get_close_matches(name, names, 1):
        return f"did you mean '{close[0]}'?"
    shown = list(names)[:8]
    return f"there are {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}"
