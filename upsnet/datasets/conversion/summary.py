"""What a conversion says at its end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from upsnet.datasets.advice import how_to_train
from upsnet.datasets.conversion.compose import ClassCount
from upsnet.datasets.conversion.convert import Converted
from upsnet.datasets.conversion.labels import Overlap, Source
from upsnet.datasets.conversion.legend import IGNORED
from upsnet.datasets.doctor.check import show
from upsnet.tables import make_table, print_tables

SHOWN = 5  # lines of one kind
NAMED = 20  # classes
PAIR = {"train", "val"}  # what training needs
RULES: dict[Overlap, str] = {
    "smaller": "the smaller shape is on top",
    "later": "the later shape is on top",
    "earlier": "the earlier shape is on top",
}


def print_summary(source: Source, made: list[Converted]) -> None:
    """A table of the classes for each split, what was lost on the way, the doctor's findings, and what to do next."""
    for each in made:
        _print_classes(each)
        _print_background(source, each)
        share = f" ({100 * each.contested / each.pixels:.2f} %)" if each.pixels else ""
        print(
            f"{each.contested:,} pixels{share} are claimed by several shapes: crowds are lowest, "
            f"then {RULES[each.overlap]}"
        )
        _print_list("shapes became no segment", each.lost)
        for kind, count in each.left_out.items():
            print(f"{count:,} shapes hold no pixels and are left out: {kind}")
        _print_list("images are left out", each.faults)
        if each.turned:
            print(f"{each.turned:,} photos are turned by their EXIF, and their labels were turned with them")
        linked = each.checkup.tally.images - each.copied
        print(f"photos: {linked:,} hard links, which take no room, {each.copied:,} copies")
        show(each.checkup, Console())
    _print_list("remarks", source.remarks)
    print("\n" + _what_next({each.split.json_file.stem: each for each in made}))


def _what_next(splits: dict[str, Converted]) -> str:
    folder = next(iter(splits.values())).split.json_file.parent
    if splits.keys() >= PAIR:
        return how_to_train(folder, splits["train"].checkup.tally.images, splits["train"].pixels)
    there = {name for name in PAIR if (folder / f"{name}.json").is_file()}
    if there == PAIR:
        return f"Next: upsnet data show {folder}, and upsnet train --config my.yaml --data {folder}"
    if there:
        name, other = *there, *(PAIR - there)
        again = f"or this once more with --name all instead of {name}, and upsnet data split"
        return f"Next: upsnet data show {folder}, and the labels of {other} with --name {other}; {again}"
    return f"Next: upsnet data show {folder}, and upsnet data split {folder} for train and val"


def _print_classes(made: Converted) -> None:
    columns = ("shapes", "segments", "crowds", "covered whole", "without pixel", "% of pixels", "pixels covered")
    table = make_table(str(made.split.json_file), "class", "kind", *columns, left=2)
    unused = []
    for category in sorted(made.table.categories, key=lambda each: (each.isthing, each.id)):
        if category.name in made.counts:
            kind = "thing" if category.isthing else "stuff"
            _add_row(table, category.name, kind, made.counts[category.name], made.pixels)
        elif category != made.table.background:
            unused.append(category.name)
    _add_row(table, "(void)", "", made.counts.get("", ClassCount()), made.pixels)
    print_tables(table)
    if unused:
        more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
        print(f"no shape is of {', '.join(unused[:NAMED])}{more}")


def _print_background(source: Source, made: Converted) -> None:
    """Where --background got no pixel: which classes are void, as they may be what the user means by it."""
    background = made.table.background
    if background is None or background.name in made.counts:
        return
    names = [each.name for each in source.classes if made.table.by_key[each.key] is None and each.name != IGNORED]
    void = ", ".join(f"'{name}'" for name in names)
    cure = f"; pixels of {void} are void, and no background: --stuff NAME makes one a class" if void else ""
    print(f"no pixel is left for the background '{background.name}'{cure}")


def _add_row(table: Table, name: str, kind: str, count: ClassCount, pixels: int) -> None:
    figures = (count.shapes, count.segments, count.crowds, count.hidden, count.empty)
    share = f"{100 * count.pixels / max(pixels, 1):.2f}"
    table.add_row(name, kind, *(f"{figure:,}" for figure in figures), share, f"{count.covered:,}")


def _print_list(what: str, lines: list[str]) -> None:
    if lines:
        print(f"{len(lines):,} {what}:")
        for line in lines[:SHOWN]:
            print(f"  {line}")
        if len(lines) > SHOWN:
            print(f"  and {len(lines) - SHOWN:,} more, in the file *_conversion.json")
