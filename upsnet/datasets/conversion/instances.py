"""COCO instances JSON (https://cocodataset.org/#format-data) -> COCO panoptic, with stuff from a second source if any.

Read are polygons (several are one object), both kinds of run lengths, crowds (`iscrowd`, and `ignore`, as some data
sets call it) and, where an annotation has no outline, its box. So are the JSONs that others write in this form: CVAT
(annotations/instances_default.json), Roboflow (train/_annotations.coco.json), LVIS, Label Studio, detectron2. The ids
of images and categories are kept; a category with COCO's own id and name gets COCO's colour.

Of overlapping objects the smaller is on top: the format has no order. It cannot hold holes (a ring inside a ring is
filled; run lengths can), which class is stuff (--stuff), and colours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from upsnet.datasets.coco_table import coco_categories
from upsnet.datasets.conversion.class_files import parse_color, read_class_table
from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.drawn import class_name, points_of, rectangle
from upsnet.datasets.conversion.labels import (
    Item,
    LabelClass,
    Labels,
    LeftOut,
    Polygon,
    Region,
    Rle,
    Shape,
    Size,
    Source,
)
from upsnet.datasets.conversion.legend import Legend
from upsnet.datasets.conversion.masks import read_masks
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.wrong_file import other_format
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.json_values import MOST_ID, complaint, finite, flag, whole

ROBOFLOW = "_annotations.coco"
NAMES = {"valid": "val", "validation": "val", "default": "all", "Default": "all", "training": "train"}
LISTS = ("images", "annotations", "categories")
WANTED = "wanted is COCO's instances JSON: lists images, annotations and categories"
PANOPTIC = "this is a COCO panoptic JSON, which needs no conversion: look with `upsnet data check`"


def read(
    path: Annotated[Path, typer.Argument(help="The JSON, or a folder with annotations/*.json or */*.coco.json.")],
    photos: Annotated[
        Path | None, typer.Option(help="The folder of the photos (default: where COCO, CVAT and Roboflow have them).")
    ] = None,
    stuff_pngs: Annotated[
        Path | None, typer.Option(help="Maps of stuff, a PNG for each photo: below all objects (COCO-Stuff).")
    ] = None,
    stuff_classes: Annotated[
        Path | None, typer.Option(help="Names and values of the stuff in these PNGs: JSON, CSV or text.")
    ] = None,
    stuff_zero_based: Annotated[
        bool, typer.Option("--stuff-zero-based", help="Their values are ids less 1, as in COCO's stuffthingmaps.")
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Photos that the JSON does not list are images without objects.")
    ] = False,
    no_crowds: Annotated[
        bool, typer.Option("--no-crowds", help="What is called a crowd is an object (CVAT calls every mask a crowd).")
    ] = False,
) -> Source:
    """COCO instances JSON (polygons, run lengths, crowds) -> COCO panoptic.

    The smaller of two objects is on top. What no object holds is void, or --background, or the stuff of --stuff-pngs.
    """
    if (stuff_pngs is None) != (stuff_classes is None):
        given, other = ("stuff-pngs", "stuff-classes")[:: 1 if stuff_pngs else -1]
        raise InputError(f"--{given} needs --{other}: the maps, and what their values mean")
    files = find_jsons(path)
    source = Source("COCO instances", path, [], {})
    roots: list[set[int]] = []
    for name, file in files.items():
        content = _content(file)
        own = _classes(content["categories"], file)
        if source.classes and [each[:3] for each in own] != [each[:3] for each in source.classes]:
            first = next(iter(files.values()))
            raise InputError(f"{file}: its categories are not those of {first}; convert them apart")
        source.classes = own
        roots.append(_roots(file, content))
        source.splits[name] = _Reader(source, file, content, own, photos, unlabelled, no_crowds).items()
    for each in [each for each in source.classes if all(each.id in found for found in roots)]:
        source.classes.remove(each)
        source.remarks.append(f"the category '{each.name}' ({each.id}) is Roboflow's name for all, and left out")
    if stuff_pngs and stuff_classes:
        _add_stuff(source, stuff_pngs, stuff_classes, stuff_zero_based)
    return source


def find_jsons(path: Path) -> dict[str, Path]:
    """Split -> JSON. A folder: Roboflow's, or annotations/instances_*.json, or the JSONs in it. InputError for none."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give COCO's instances JSON")
        return {_split_name(path): path}
    for pattern in (f"*/*{ROBOFLOW}.json", "annotations/instances_*.json", "*.json"):
        found = sorted(each for each in path.glob(pattern) if not each.name.startswith("."))
        named = {_split_name(each): each for each in found}
        if len(named) < len(found):
            raise InputError(f"{path}: several JSONs make a split of one name, as {found[0]}; give one of them")
        if found:
            return named
    raise InputError(f"{path}: no JSON in it, in annotations/ (instances_*.json) or in its folders (*{ROBOFLOW}.json)")


def _split_name(file: Path) -> str:
    name = file.stem.removeprefix("instances_").removeprefix("lvis_v1_")
    if name.endswith(ROBOFLOW):
        name = file.absolute().parent.name
    return NAMES.get(name, name)


def _content(file: Path) -> dict[str, list[Any]]:
    content = read_json(file)
    if not isinstance(content, Mapping) or "annotations" not in content or not isinstance(content["annotations"], list):
        raise InputError(f"{file}: {WANTED}{_other(content)}")
    if any(isinstance(each, Mapping) and "segments_info" in each for each in content["annotations"][:100]):
        raise InputError(f"{file}: {PANOPTIC}")
    for key in LISTS:
        if not isinstance(content.get(key), list):
            raise InputError(f"{file}: no list '{key}'; {WANTED}")
    return {key: content[key] for key in LISTS}


def _other(content: object) -> str:
    return f"; {other.partition(';')[0]}" if (other := other_format(content)) else ""


def _classes(entries: Sequence[Any], file: Path) -> list[LabelClass]:
    known = {each.id: each for each in coco_categories()}
    classes, met = [], set()
    for place, entry in enumerate(entries):
        where = f"{file}: categories[{place}]"
        if not isinstance(entry, Mapping):
            raise InputError(f"{where} is not an object: {entry!r:.40}")
        number = whole(entry.get("id"))
        if number is None or abs(number) > MOST_ID:
            raise InputError(f"{where}: {complaint(entry, 'id')}")
        if number in met:
            raise InputError(f"{where}: its id {number} is another category's too; give each its own")
        met.add(number)
        name = class_name(entry.get("name"), "name", where)
        isthing = flag(entry.get("isthing", 1))
        if isthing is None:
            raise InputError(f"{where}: {complaint(entry, 'isthing', '0 or 1')}")
        color = parse_color(entry.get("color"))
        if number in known and known[number].name == name:
            color = color or known[number].color
        classes.append(LabelClass(number, name, number, color, bool(isthing)))
    return classes


def _roots(file: Path, content: Mapping[str, list[Any]]) -> set[int]:
    """Roboflow lists the whole project as a category: no annotation has it, and it is the parent of the others."""
    if not file.stem.endswith(ROBOFLOW):
        return set()
    categories, annotations = content["categories"], content["annotations"]
    parents = [each.get("supercategory") for each in categories]
    used = {whole(each.get("category_id")) for each in annotations if isinstance(each, Mapping)}
    return {each["id"] for each in categories if each["name"] in parents and each["id"] not in used}


class Image(NamedTuple):
    id: int
    name: str  # of the photo, as the JSON has it
    size: Size | None


class _Reader:
    """The images of one JSON."""

    def __init__(
        self,
        source: Source,
        file: Path,
        content: Mapping[str, list[Any]],
        classes: Sequence[LabelClass],
        photos: Path | None,
        unlabelled: bool,
        no_crowds: bool,
    ) -> None:
        self._source, self._file, self._content = source, file, content
        self._classes = {each.id: each.name for each in classes}
        self._folder = PhotoFolder(photos or photo_place(file))
        self._unlabelled, self._no_crowds = unlabelled, no_crowds

    def items(self) -> list[Item]:
        faults = self._source.faults
        images = {image.id: image for image in self._images()}
        self._remark_crowds()
        grouped: dict[int, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
        for place, entry in enumerate(self._content["annotations"]):
            where = f"{self._file.name}: annotations[{place}]"
            if not isinstance(entry, Mapping):
                faults.append(f"{where} is not an object: {entry!r:.40}")
                continue
            image_id = whole(entry.get("image_id"))
            if image_id is None:
                faults.append(f"{where}: {complaint(entry, 'image_id')}")
            elif image_id not in images:
                faults.append(f"{where}: is of the image {image_id}, which is not among the images; list it")
            else:
                grouped[image_id].append((place, entry))
        items, taken = [], set()
        for image in images.values():
            try:
                name = self._folder.find(image.name)
            except InputError as error:
                faults.append(f"{self._file.name}: image {image.id}: {error}")
                continue
            if name in taken:
                faults.append(f"{self._file.name}: image {image.id}: its photo {name} is another image's too")
                continue
            taken.add(name)
            reader = partial(
                read_annotations,
                entries=grouped.pop(image.id, []),
                names=self._classes,
                drawn_on=image.size,
                file=self._file.name,
                no_crowds=self._no_crowds,
            )
            items.append(Item(self._folder.path(name), name, reader, image.id))
        return items + self._others(taken, [item.image_id or 0 for item in items])

    def _remark_crowds(self) -> None:
        """CVAT's exporter, datumaro, calls whatever was drawn with the brush a crowd; its entries have attributes."""
        entries = [each for each in self._content["annotations"] if isinstance(each, Mapping)]
        crowds = sum(each.get("iscrowd") == 1 and "attributes" in each for each in entries)
        if crowds and not self._no_crowds:
            what = "annotations are crowds; CVAT's COCO export calls every mask one: if they are objects, --no-crowds"
            self._source.remarks.append(f"{self._file.name}: {crowds:,} of {len(entries):,} {what}, or give its XML")

    def _others(self, taken: set[str], numbers: Sequence[int]) -> list[Item]:
        """Photos that the JSON does not list."""
        free = [name for name in self._folder.names() if name not in taken]
        if free and not self._unlabelled:
            what = "photos are not in the JSON and left out (--unlabelled: they show no object)"
            self._source.remarks.append(f"{self._file.name}: {len(free):,} {what}, as {free[0]}")
        first = max(numbers, default=0) + 1
        each = enumerate(free if self._unlabelled else (), first)
        return [Item(self._folder.path(name), name, no_labels, number) for number, name in each]

    def _images(self) -> Iterator[Image]:
        met: set[int] = set()
        for place, entry in enumerate(self._content["images"]):
            where = f"{self._file.name}: images[{place}]"
            if not isinstance(entry, Mapping):
                self._source.faults.append(f"{where} is not an object: {entry!r:.40}")
                continue
            number, name = whole(entry.get("id")), photo_name(entry)
            if number is None or not 0 <= abs(number) <= MOST_ID:
                self._source.faults.append(f"{where}: {complaint(entry, 'id')}")
            elif number in met:
                self._source.faults.append(f"{where}: its id {number} is another image's too; give each its own")
            elif name is None:
                self._source.faults.append(f"{where}: {complaint(entry, 'file_name', 'a text')}")
            else:
                met.add(number)
                height, width = (whole(entry.get(key)) or 0 for key in ("height", "width"))
                yield Image(number, name, (height, width) if height > 0 and width > 0 else None)


def photo_name(entry: Mapping[str, Any]) -> str | None:
    """LVIS has coco_url, whose last two parts are folder and file."""
    name = entry.get("file_name")
    if name is None and isinstance(entry.get("coco_url"), str):
        return "/".join(PurePosixPath(entry["coco_url"]).parts[-2:])
    return name if isinstance(name, str) and name else None


def photo_place(file: Path) -> Path:
    """Where the photos of such a JSON usually lie: beside it, or beside the folder `annotations`."""
    name = file.stem.removeprefix("instances_")
    above = file.absolute().parent.parent
    candidates = [file.with_name(name), file.with_name("images"), file.parent]
    if file.absolute().parent.name == "annotations":
        candidates = [above / name, above / "images" / name, above / "images", above]
    return next(each for each in candidates if each.is_dir())


def no_labels(size: Size) -> Labels:
    return Labels([])


def read_annotations(
    size: Size,
    entries: Sequence[tuple[int, Mapping[str, Any]]],
    names: Mapping[int, str],
    drawn_on: Size | None,
    file: str,
    no_crowds: bool = False,
) -> Labels:
    """The shapes of one image's annotations, which have their places in the list. size, drawn_on: height, width of the
    photo, and of the image as the JSON has it. InputError names the annotation."""
    shapes, left_out = [], []
    for place, entry in entries:
        where = f"{file}: annotation {entry.get('id', f'no. {place}')!s:.40}"
        category = whole(entry.get("category_id"))
        if category is None:
            raise InputError(f"{where}: {complaint(entry, 'category_id')}")
        if category not in names:
            raise InputError(f"{where}: has the unknown category {category}; add it to the categories")
        where = f"{where} ({names[category]})"
        crowd, ignored = (flag(entry.get(key) or 0) for key in ("iscrowd", "ignore"))
        if crowd is None:
            raise InputError(f"{where}: {complaint(entry, 'iscrowd', '0 or 1')}")
        is_crowd = bool(crowd or ignored) and not no_crowds
        regions = read_segmentation(entry.get("segmentation"), where)
        box = None if regions else read_box(entry.get("bbox"), where)
        if regions or box:
            shapes.append(Shape(category, regions or (box,), where, is_crowd, is_box=not regions))  # type: ignore[arg-type]
        else:
            left_out.append(LeftOut("annotation without outline and box", where))
    return Labels(shapes, drawn_on, left_out)


def read_segmentation(value: object, where: str) -> tuple[Region, ...]:
    """Empty where there is no outline. What a list of polygons holds is one object."""
    if value is None or value == [] or value == {} or value == [[]]:
        return ()
    if isinstance(value, Mapping):
        return (_run_lengths(value, where),)
    if not isinstance(value, list):
        raise InputError(f"{where}: 'segmentation' is {value!r:.40}, neither a list of polygons nor run lengths")
    if not isinstance(value[0], list):  # one polygon without the list around it
        value = [value]
    return (Polygon(tuple(_ring(each, where, place) for place, each in enumerate(value))),)


def _ring(value: object, where: str, place: int) -> np.ndarray:
    """[x1, y1, x2, y2, ...], or the points as pairs."""
    if not isinstance(value, list):
        raise InputError(f"{where}: polygon {place} is {value!r:.40}, not a list of numbers")
    if value and isinstance(value[0], list):
        return points_of(value, f"{where}: polygon {place}")
    if len(value) % 2:
        raise InputError(f"{where}: polygon {place} has {len(value)} numbers, which are no pairs of x and y")
    odd = [number for number in value if finite(number) is None]
    if odd:
        raise InputError(f"{where}: polygon {place} has {odd[0]!r:.40}, which is no finite number")
    try:
        return np.array(value, np.float64).reshape(-1, 2)
    except OverflowError:
        raise InputError(f"{where}: polygon {place} has a number that is not finite") from None


def _run_lengths(value: Mapping[str, Any], where: str) -> Rle:
    counts, given = value.get("counts"), value.get("size")
    sides = [whole(side) for side in given] if isinstance(given, list) and len(given) == 2 else []
    if len(sides) != 2 or None in sides:
        raise InputError(f"{where}: the 'size' of its run lengths is {given!r:.40}, not [height, width]")
    if isinstance(counts, str):
        if not counts.isascii():
            raise InputError(f"{where}: its run lengths are a text that is no COCO code")
        return Rle(counts.encode(), (sides[0], sides[1]))  # type: ignore[arg-type]
    lengths = [whole(count) for count in counts] if isinstance(counts, list) else [None]
    if any(count is None or count > MOST_ID for count in lengths):
        raise InputError(f"{where}: the 'counts' of its run lengths are neither a text nor a list of integers")
    return Rle(lengths, (sides[0], sides[1]))  # type: ignore[arg-type]


def read_box(value: object, where: str) -> Polygon | None:
    """[x, y, width, height]; None where there is none, or one without area."""
    if not isinstance(value, list) or not value:
        return None
    numbers = [finite(each) for each in value]
    if len(numbers) != 4 or None in numbers:
        raise InputError(f"{where}: 'bbox' is {value!r:.60}, not [x, y, width, height]")
    x, y, width, height = (float(each) for each in numbers if each is not None)
    return Polygon((rectangle(x, y, x + width, y + height),)) if width > 0 and height > 0 else None


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


def _add_stuff(source: Source, folder: Path, classes: Path, zero_based: bool) -> None:
    """The classes and the readers of the stuff. A class of the table that is one of the objects', or a thing, is none:
    its pixels are the objects'."""
    table = read_class_table(classes)
    if zero_based:
        table = table._replace(rows=[row._replace(value=row.id - 1 if row.id else None) for row in table.rows])
    legend = Legend.of(table)
    names = {each.name for each in source.classes}
    rows = list(enumerate(legend.rows))
    stuff = [(place, row) for place, row in rows if not row.void and not row.isthing and row.name not in names]
    source.classes += [LabelClass(("stuff", place), row.name, row.id or 0, row.color, False) for place, row in stuff]
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


main = converter(read)
