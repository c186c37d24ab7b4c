"""Maps of stuff below the objects of another source: COCO-Stuff's PNGs, and others of their kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from upsnet.datasets.coco_table import coco_color
from upsnet.datasets.conversion.class_files import read_class_table
from upsnet.datasets.conversion.labels import LabelClass, Labels, Size, Source
from upsnet.datasets.conversion.legend import Legend
from upsnet.datasets.conversion.masks import read_masks
from upsnet.errors import InputError


def read_both(
    size: Size, objects: Callable[[Size], Labels], png: Path, legend: Legend, places: Collection[int]
) -> Labels:
    """Objects, and below them a map of stuff. places: of the legend's classes, those that are stuff."""
    labels = objects(size)
    drawn_on = labels.size or size
    ground = read_masks(drawn_on, png, None, legend)
    if ground.size != drawn_on:
        sizes = f"{ground.size[1]} x {ground.size[0]}, the objects {drawn_on[1]} x {drawn_on[0]}"  # type: ignore[index]
        raise InputError(f"{png}: is for a photo of {sizes} pixels (width x height)")
    stuff = [shape._replace(key=("stuff", shape.key)) for shape in ground.shapes if shape.key in places]
    return labels._replace(shapes=[*stuff, *labels.shapes])


def add_stuff(source: Source, folder: Path, classes: Path, zero_based: bool, ignored: Sequence[str] | None) -> None:
    """The classes and the readers of the stuff. A class of the table that is one of the objects', or a thing, is none:
    its pixels are the objects'."""
    table = read_class_table(classes)
    if zero_based:
        table = table._replace(rows=[row._replace(value=row.id - 1 if row.id else None) for row in table.rows])
    legend = Legend.of(table, ignored)
    names = {each.name for each in source.classes}
    rows = list(enumerate(legend.rows))
    stuff = [(place, row) for place, row in rows if not row.void and not row.isthing and row.name not in names]
    for place, row in stuff:
        number = row.id or 0
        color = row.color or coco_color(number, row.name)
        source.classes.append(LabelClass(("stuff", place), row.name, number, color, False))
    places = frozenset(place for place, _ in stuff)
    for name, items in source.splits.items():
        kept = []
        for item in items:
            png = folder / Path(item.name).with_suffix(".png")
            png = png if png.is_file() else folder / png.name
            if png.is_file():
                both = partial(read_both, objects=item.read, png=png, legend=legend, places=places)
                kept.append(item._replace(read=both))
            else:
                source.faults.append(f"{item.name}: no map of stuff {folder / Path(item.name).stem}.png")
        source.splits[name] = kept
