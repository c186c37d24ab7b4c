"""A Supervisely project -> shapes: meta.json, and folders of datasets with ann/NAME.json and img/NAME.

Read are bitmaps, alpha masks (what is not fully transparent), polygons with holes and polygons of several parts;
rectangles and turned ones are boxes; points, lines, graphs and cuboids hold no pixels. Objects of one class that are
bound together (`instance`) are one. Of overlapping objects the later is on top, as the editor has it. An object with
the tag `crowd` or `iscrowd` is a crowd: Supervisely itself has none, nor things and stuff. Each dataset is a split.

Coordinates (developer.supervisely.com, "Coordinate system"): whole numbers name pixels, and an outline through pixels
holds these too, as the SDK has it; a hole's outline is the hole's. Coordinates with fractions are the editor's own,
with 0 at the upper left pixel's corner, and are painted by COCO's rule. A bitmap comes back exactly, and so does a
polygon that was traced around the pixels of an object without holes; along other slanted lines the SDK (cv2.fillPoly)
paints up to a pixel more.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw

from upsnet.datasets.conversion.class_files import parse_color
from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.drawn import (
    Part,
    class_name,
    clockwise,
    from_base64,
    inflate,
    join,
    png_mask,
    points_of,
    rectangle,
)
from upsnet.datasets.conversion.labels import (
    Bitmap,
    Color,
    Item,
    LabelClass,
    Labels,
    LeftOut,
    Polygon,
    Region,
    Size,
    Source,
    no_labels,
    without_shared_colors,
)
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.conversion.regions import check_points
from upsnet.datasets.conversion.table import nearest
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.json_values import finite, whole

ALL = "all"  # the split of datasets that are merged
CROWD = ("crowd", "iscrowd")
NO_PIXELS = ("point", "line", "polyline", "graph", "cuboid", "cuboid_2d")
Kinds = dict[str, str]  # classes with the kind of their objects, as meta.json has them


def read(
    path: Annotated[Path, typer.Argument(help="The project's folder: meta.json and a folder for each dataset.")],
    merge: Annotated[bool, typer.Option("--merge", help="One split of all datasets.")] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Photos without a JSON are images without objects.")
    ] = False,
) -> Source:
    """A Supervisely project to COCO panoptic. Each of its datasets becomes a split, unless they are merged."""
    classes, kinds = _read_meta(path)
    source = Source("Supervisely", path, classes, {}, overlap="later")
    free: list[str] = []
    for folder in _datasets(path):
        name = "_".join(part for part in folder.relative_to(path).parts if part != "datasets") or ALL
        split = ALL if merge else name
        if not merge and split in source.splits:
            raise InputError(f"{folder}: another dataset's split is named {split}, too; rename one, or --merge them")
        items, without = _items(source, folder, kinds)
        if unlabelled:
            items += [Item(folder / "img" / each, each, no_labels) for each in without]
        else:
            free += [f"{name}/img/{each}" for each in without]
        prefix = f"{name}/" if merge else ""
        source.splits.setdefault(split, []).extend(item._replace(name=prefix + item.name) for item in items)
    source.remark(free, "photos have no JSON and are left out (--unlabelled: they show no object)")
    return source


def _read_meta(path: Path) -> tuple[list[LabelClass], Kinds]:
    file = path / "meta.json"
    if not file.is_file():
        raise InputError(f"{path}: no meta.json, which a Supervisely project has; give the folder that holds it")
    content = read_json(file)
    rows = content.get("classes") if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{file}: no list 'classes'")
    classes: list[LabelClass] = []
    kinds: Kinds = {}
    for place, row in enumerate(rows):
        where = f"{file}: classes[{place}]"
        if not isinstance(row, Mapping):
            raise InputError(f"{where} is {row!r:.40}, not an object")
        title = class_name(row.get("title"), "title", where)
        classes.append(LabelClass(title, title, place + 1, _color(row.get("color"), where)))
        kinds[title] = str(row.get("shape"))
    return without_shared_colors(classes), kinds


def _color(value: object, where: str) -> Color | None:
    color = parse_color(value)
    if value is not None and color is None:
        raise InputError(f"{where}: 'color' is {value!r:.40}, not #RRGGBB")
    return color


def _datasets(path: Path) -> list[Path]:
    """The folders that hold `ann`, wherever they lie: a dataset of another one is below its folder `datasets`."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, _ in os.walk(path, followlinks=True):
        if "ann" in folders:
            found.append(Path(place))
        again = os.path.realpath(place) in seen
        seen.add(os.path.realpath(place))
        inner = [] if again else sorted(folders)
        folders[:] = [each for each in inner if each not in ("ann", "img") and not each.startswith(".")]
    if not found:
        raise InputError(f"{path}: no dataset, a folder that holds ann and img, beside meta.json")
    return found


def _items(source: Source, folder: Path, kinds: Kinds) -> tuple[list[Item], list[str]]:
    """Of one dataset; and its photos that have no JSON. Adds the faults."""
    photos = PhotoFolder(folder / "img")
    by_stem: dict[str, list[str]] = {}
    for name in photos.names():
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    items, taken = [], set()
    for file in sorted((folder / "ann").iterdir()):
        if not file.name.lower().endswith(".json") or file.name.startswith("."):
            continue
        name = file.name[: -len(".json")]
        same = by_stem.get(name, [])  # early projects name a JSON without the photo's suffix
        if name not in photos and len(same) == 1:
            name = same[0]
        if name in taken or name not in photos:
            cure = "another JSON is of the same photo" if name in taken else "is not there; export with the images"
            source.faults.append(f"{file}: its photo {folder / 'img' / name}: {cure}")
            continue
        taken.add(name)
        items.append(Item(photos.path(name), name, partial(read_labels, file=file, kinds=kinds)))
    return items, [name for name in photos.names() if name not in taken]


def read_labels(size: Size, file: Path, kinds: Kinds) -> Labels:
    """The objects of one photo of height, width `size`. InputError names the file and the object."""
    content = read_json(file)
    objects = content.get("objects") if isinstance(content, Mapping) else None
    if not isinstance(objects, list):
        raise InputError(f"{file}: no list 'objects'")
    parts: list[tuple[Hashable, Part]] = []
    left_out: list[LeftOut] = []
    for place, entry in enumerate(objects):
        where = f"{file.name}: objects[{place}]"
        if not isinstance(entry, Mapping):
            raise InputError(f"{where} is {entry!r:.40}, not an object")
        title = class_name(entry.get("classTitle"), "classTitle", where)
        if title not in kinds:
            raise InputError(f"{where}: meta.json has no class '{title}'; {nearest(title, kinds)}")
        kind = next((str(entry[key]) for key in ("geometryType", "shape") if entry.get(key)), kinds[title])
        if kind in NO_PIXELS:
            left_out.append(LeftOut(kind, where))
            continue
        bound = entry.get("instance")
        is_box = kind in ("rectangle", "oriented_bbox")
        regions = tuple(_regions(kind, entry, size, where))
        part = Part(title, regions, f"{where} ({title})", _is_crowd(entry.get("tags")), is_box)
        parts.append((bound if isinstance(bound, str | int) else None, part))
    shapes, boxes = join(parts)
    drawn_on = content.get("size")
    sides = [whole(drawn_on.get(key)) if isinstance(drawn_on, Mapping) else None for key in ("height", "width")]
    height, width = (side or 0 for side in sides)
    return Labels(shapes, (height, width) if height > 0 and width > 0 else None, [*left_out, *boxes])


def _is_crowd(tags: object) -> bool:
    entries = tags if isinstance(tags, list) else []
    return any((each.get("name") if isinstance(each, Mapping) else each) in CROWD for each in entries)


def _regions(kind: str, entry: Mapping[str, Any], size: Size, where: str) -> Iterator[Region]:
    if kind in ("bitmap", "alpha_mask"):
        yield _bitmap(entry.get("bitmap"), size, where)
    elif kind == "polygon":
        yield _polygon(entry.get("points"), size, where)
    elif kind == "multipolygon":
        parts = entry.get("parts")
        if not isinstance(parts, list):
            raise InputError(f"{where}: 'parts' is {parts!r:.40}, not a list of polygons")
        for part in parts:
            yield _polygon(part, size, where)
    elif kind == "rectangle":
        points = entry.get("points")
        corners = points_of(points.get("exterior") if isinstance(points, Mapping) else points, where)
        yield _box(corners, 0.0, where)
    elif kind == "oriented_bbox":
        angle = finite(entry.get("angle"))
        if angle is None:
            raise InputError(f"{where}: 'angle' is {entry.get('angle')!r:.40}, not a number of radians")
        yield _box(points_of(entry.get("points"), where), float(angle), where)
    else:
        known = ", ".join(("bitmap", "alpha_mask", "polygon", "multipolygon", "rectangle", "oriented_bbox", *NO_PIXELS))
        raise InputError(f"{where}: 'geometryType' is {kind!r:.40}, which is not known here; there are {known}")


def _bitmap(content: object, size: Size, where: str) -> Bitmap:
    """A PNG, packed by zlib or not, and the place of its first pixel."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: 'bitmap' is {content!r:.40}, not an object with data and origin")
    what = f"{where}: the bitmap's data"
    packed = from_base64(content.get("data"), what)
    mask = png_mask(packed if packed.startswith(b"\x89PNG") else inflate(packed, size, what), size, what)
    origin = points_of([content.get("origin")], f"{where}: the bitmap's origin")
    x, y = np.floor(check_points(origin, size, where)[0]).astype(int)
    return Bitmap(mask, int(x), int(y))


def _polygon(content: object, size: Size, where: str) -> Region:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: its points are {content!r:.40}, not an object with exterior and interior")
    outer = points_of(content.get("exterior"), where)
    interior = content.get("interior") or []
    if not isinstance(interior, list):
        raise InputError(f"{where}: 'interior' is {interior!r:.40}, not a list of holes")
    holes = tuple(points_of(each, where) for each in interior)
    rings = (outer, *holes)
    if not all((ring == np.floor(ring)).all() for ring in rings):
        return Polygon((outer,), holes)
    for ring in rings:
        check_points(ring, size, where)
    return _through_pixels(rings, size)


def _through_pixels(rings: tuple[np.ndarray, ...], size: Size) -> Bitmap:
    """What a ring through pixels holds, these included, without what the others hold. A coordinate that is the photo's
    side means its last pixel."""
    inside = [np.where(ring == size[::-1], ring - 1, ring).astype(int) for ring in rings]
    if not len(inside[0]):
        return Bitmap(np.zeros((0, 0), bool))
    low = np.clip(inside[0].min(0), 0, size[::-1])
    high = np.clip(inside[0].max(0) + 1, low, size[::-1])
    canvas = Image.new("1", tuple((high - low).tolist()))
    for value, ring in zip((1, *[0] * len(inside)), inside, strict=False):
        points = [tuple(point) for point in (ring - low).tolist()]
        if len(points) == 1:
            ImageDraw.Draw(canvas).point(points, value)
        elif points:
            ImageDraw.Draw(canvas).polygon(points, fill=value, outline=value)
    return Bitmap(np.asarray(canvas, bool), *low.tolist())


def _box(corners: np.ndarray, angle: float, where: str) -> Polygon:
    """By two opposite corners, turned around its middle: clockwise, in radians."""
    if len(corners) != 2:
        raise InputError(f"{where}: a rectangle with {len(corners)} points; it has two, which are opposite corners")
    low, high = corners.min(0), corners.max(0)
    if (corners == np.floor(corners)).all():  # names of pixels, the last one's included
        high = high + 1
    ring = rectangle(*low, *high)
    middle = (low + high) / 2
    return Polygon(((ring - middle) @ clockwise(angle) + middle,))


main = converter(read)
