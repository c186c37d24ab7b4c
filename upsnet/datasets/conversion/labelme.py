"""Labelme's JSONs (github.com/wkentaro/labelme), one beside each photo, and X-AnyLabeling's -> shapes.

Read are polygons, circles, masks and quadrilaterals; rectangles and those that are turned are boxes; points, lines and
cuboids hold no pixels. Shapes of one label and one group_id are one object. Of overlapping shapes the later is on top,
as Labelme's own shapes_to_label has it. The labels `__ignore__` and `_background_` are void. A shape with the flag
`crowd` or `iscrowd` is a crowd: Labelme itself has none. Coordinates are the photo's, with 0 at the upper left pixel's
corner. Pixels are those of COCO's rule: Labelme's own painting takes each pixel that the outline touches, which makes
an object half a pixel larger on all sides. Polygons have no holes: draw a mask, or draw what shows through on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from upsnet.datasets.conversion.class_files import read_class_table
from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.drawn import (
    Part,
    class_name,
    disc,
    from_base64,
    is_class_name,
    join,
    png_mask,
    points_of,
    rectangle,
)
from upsnet.datasets.conversion.labels import (
    Bitmap,
    Item,
    LabelClass,
    Labels,
    LeftOut,
    Polygon,
    Region,
    Size,
    Source,
    no_labels,
)
from upsnet.datasets.conversion.photo_folder import PhotoFolder, files_below
from upsnet.datasets.conversion.regions import check_points
from upsnet.datasets.parallel import map_parallel, usable_cores
from upsnet.datasets.progress import progress_bar
from upsnet.errors import InputError
from upsnet.files import read_json, write_bytes
from upsnet.json_values import whole
from upsnet.photos import read_photo

VOID = ("__ignore__", "_background_")
NO_PIXELS = ("point", "points", "line", "linestrip", "cuboid")
TURNED = ("oriented_rectangle", "rotation")  # Labelme's name, X-AnyLabeling's
CROWD = ("crowd", "iscrowd")
FORMATS = {b"/9j/": (".jpg", ".jpeg", ".jpe", ".jfif"), b"iVBORw0": (".png",)}  # how they begin in base64
SPLITS = {"train", "val", "test"}
LABELS = "labels.txt"
FEW = 500  # JSONs for which another process is not worth its start


def read(
    path: Annotated[Path, typer.Argument(help="The folder with Labelme's JSONs, in it or below.")],
    photos: Annotated[Path | None, typer.Option(help="The folder of the photos (default: that of the JSONs).")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Photos without a JSON are images without objects.")
    ] = False,
) -> Source:
    """Labelme's JSONs, one a photo, to COCO panoptic.

    A labels.txt in the folder gives the classes their order; without it they are in that of the alphabet. Where all
    JSONs lie in folders train, val and test of the one that is given, these are the splits.
    """
    looks = _look_at_all(path)
    folder = PhotoFolder(photos or path)
    labelled = [look for look in looks if look.other is None]
    if not labelled:
        seen = f"; {looks[0].name}: {looks[0].other}" if looks else ""
        raise InputError(f"{path}: no Labelme JSON, which has 'shapes' and 'imagePath', in it or below{seen}")
    classes = _classes(path, labelled)
    tops = {_top(look.name) for look in labelled}
    splits = sorted(tops) if tops <= SPLITS else ["all"]
    source = Source("Labelme", path, classes, {name: [] for name in splits}, overlap="later")
    taken = _items(source, folder, path, labelled)
    source.remark([look.name for look in looks if look.other], "JSONs are none of Labelme's and passed over")
    free = [name for name in folder.names() if name not in taken]
    if unlabelled:
        for name in free:
            _add(source, name, Item(folder.path(name), name, no_labels))
    else:
        source.remark(free, "photos have no JSON and are left out (--unlabelled: they show no object)")
    if not classes and any(source.splits.values()):
        nothing = f"no JSON in it has a shape, and so there is no class; draw one, or name the classes in {LABELS}"
        causes = [*(look.nameless for look in labelled if look.nameless), *source.faults, nothing]
        raise InputError(f"{path}: {causes[0]}")
    return source


def _top(name: str) -> str:
    """The folder, below the one that was given, in which a file lies; of its own files the name."""
    return PurePosixPath(name).parts[0]


def _add(source: Source, name: str, item: Item) -> None:
    """To the split of the file `name`, a JSON or a photo that has none."""
    if "all" in source.splits:
        source.splits["all"].append(item)
    elif (split := _top(name)) in source.splits:
        source.splits[split].append(item._replace(name=item.name.removeprefix(f"{split}/")))
    else:
        raise InputError(f"{item.photo}: has no JSON and lies in none of the folders {', '.join(source.splits)}")


class Look(NamedTuple):
    """What a JSON says on the whole."""

    name: str  # below the folder
    photo: str = ""  # imagePath, with slashes
    embedded: str | None = None  # suffix of the photo in imageData
    labels: frozenset[str] = frozenset()
    nameless: str | None = None  # why its first shape has no class, where none has
    fault: str | None = None
    other: str | None = None  # why it is no Labelme JSON


def _look_at_all(path: Path) -> Sequence[Look]:
    if not path.is_dir():
        raise InputError(
            f"{path}: {'a file' if path.exists() else 'no such folder'}; give the folder with Labelme's JSONs"
        )
    names = list(files_below(path, (".json",)))
    results = map_parallel(partial(_look, folder=path), names, min(usable_cores(), 1 + len(names) // FEW))
    return list(progress_bar(results, total=len(names), title="JSONs", unit="file", shown=len(names) >= FEW))


def _look(name: str, folder: Path) -> Look:
    try:
        content = read_json(folder / name)
        if not isinstance(content, Mapping) or not {"shapes", "imagePath"} & content.keys():
            return Look(name, other="has neither 'shapes' nor 'imagePath'")
        shapes, photo = _shapes(content, name), content.get("imagePath")
        if photo is not None and not isinstance(photo, str):
            raise InputError(f"{name}: 'imagePath' is {photo!r:.40}, not a name")
        photo = PureWindowsPath(photo or "").as_posix()
        if photo.lower().endswith(".json"):  # Labelme 4.0 wrote its own name
            photo = ""
        labels = [each.get("label") for each in shapes if isinstance(each, Mapping)]
        names = frozenset(str(each) for each in labels if is_class_name(each))
        return Look(name, photo, _suffix(content, photo), names, _nameless(shapes, name) if not names else None)
    except InputError as error:
        return Look(name, fault=str(error))


def _nameless(shapes: Sequence[Any], name: str) -> str | None:
    """Why the first shape has no class; None: it has one, or there is no shape."""
    try:
        if shapes:
            _label(shapes[0], f"{name}: shapes[0]")
    except InputError as error:
        return str(error)
    return None


def _label(entry: object, where: str) -> str:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r:.40}, not an object")
    return class_name(entry.get("label"), "label", where)


def _shapes(content: Mapping[str, Any], name: str) -> list[Any]:
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise InputError(f"{name}: 'shapes' is {shapes!r:.40}, not a list")
    return shapes


def _suffix(content: Mapping[str, Any], photo: str) -> str | None:
    """Of the embedded photo: its own, whatever the photo's name says; None: there is none."""
    text = content.get("imageData")
    if not isinstance(text, str) or not text:
        return None
    own = PurePosixPath(photo).suffix
    begin = text.lstrip()[:16].encode(errors="replace")
    suffixes = next((found for magic, found in FORMATS.items() if begin.startswith(magic)), (own,))
    return own if own.lower() in suffixes else suffixes[0]


def _classes(path: Path, looks: Sequence[Look]) -> list[LabelClass]:
    names = sorted(frozenset().union(*(look.labels for look in looks)))
    if (listed := path / LABELS).is_file():
        names = list(dict.fromkeys([*(row.name for row in read_class_table(listed).rows), *names]))
    ordered = [name for name in names if name not in VOID] + [name for name in names if name in VOID]
    return [LabelClass(name, name, number, void=name in VOID) for number, name in enumerate(ordered, 1)]


def _items(source: Source, folder: PhotoFolder, path: Path, looks: Sequence[Look]) -> set[str]:
    """Adds the items, the faults and what is to be said of them; returns the names of the photos that have labels."""
    stems: dict[str, list[str]] = {}
    for name in folder.names():
        stems.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    found: list[tuple[Look, Item]] = []
    renamed, embedded = [], []
    unread: set[str] = set()
    for look in looks:
        if look.fault:
            source.faults.append(look.fault)
            unread.update(stems.get(str(PurePosixPath(look.name).with_suffix("")), ()))
            continue
        read_them = partial(read_labels, file=path / look.name)
        try:
            name, by_stem = _photo(look, folder, stems)
            if "all" not in source.splits and _top(name) in {*source.splits} - {_top(look.name)}:
                raise InputError(f"its photo {look.photo!r} would be '{name}', of another split")
            found.append((look, Item(folder.path(name), name, read_them)))
            renamed += [look.name] * by_stem
        except InputError as error:
            if look.embedded is None:
                source.faults.append(f"{look.name}: {error}; give the folder of the photos as --photos")
                continue
            name = str(PurePosixPath(look.name).with_suffix(look.embedded))
            unpack = partial(unpack_photo, file=path / look.name)
            found.append((look, Item(path / look.name, name, read_them, unpack=unpack)))
            embedded.append(look.name)
    uses = Counter(item.photo for _, item in found)
    for look, item in found:
        if uses[item.photo] > 1:
            source.faults.append(f"{look.name}: another JSON is of the photo {item.name} too; keep one of them")
        else:
            _add(source, look.name, item)
    source.remark(renamed, "JSONs name a photo that is not there; taken is the one with the JSON's own name")
    source.remarks += folder.remarks()
    source.remark(embedded, "photos are not there and taken from the JSON (imageData)")
    return unread | {item.name for _, item in found}


def _photo(look: Look, folder: PhotoFolder, stems: Mapping[str, list[str]]) -> tuple[str, bool]:
    """The name of its photo below the folder, and whether only the JSON's own name led there, as Labelme itself looks
    for a photo's labels. InputError: there is none."""
    beside = _joined(PurePosixPath(look.name).parent, look.photo)
    if beside and beside in folder:
        return beside, False
    same = stems.get(str(PurePosixPath(look.name).with_suffix("")), [])
    if len(same) == 1:
        return same[0], PurePosixPath(same[0]).name != PurePosixPath(look.photo).name
    return folder.find(beside or look.photo), False


def _joined(below: PurePosixPath, name: str) -> str | None:
    """`name` as seen from the folder `below`; None: it leads outside."""
    parts: list[str] = []
    for part in (below / name).parts:
        if part == ".." and not parts:
            return None
        parts = parts[:-1] if part == ".." else [*parts, part]
    return None if not parts or parts[0] == "/" or PureWindowsPath(name).drive or not name else "/".join(parts)


def unpack_photo(target: Path, file: Path) -> None:
    """The photo that is inside a JSON. InputError where it cannot be read."""
    content = from_base64(read_json(file).get("imageData"), f"{file}: 'imageData'")
    read_photo(content, f"{file}: 'imageData'")
    write_bytes(target, content)


def read_labels(size: Size, file: Path) -> Labels:
    """The shapes of one JSON, of a photo of height, width `size`. InputError names the file and the shape."""
    content = read_json(file)
    parts: list[tuple[Hashable, Part]] = []
    left_out: list[LeftOut] = []
    for place, entry in enumerate(_shapes(content, file.name)):
        where = f"{file.name}: shapes[{place}]"
        label = _label(entry, where)
        kind = entry.get("shape_type") or "polygon"  # old files have none
        if kind in NO_PIXELS:
            left_out.append(LeftOut(str(kind), where))
            continue
        group = entry.get("group_id")
        if group is not None and whole(group) is None and not isinstance(group, str):
            raise InputError(f"{where}: 'group_id' is {group!r:.40}, not an integer or null")
        flags = entry.get("flags")
        crowd = isinstance(flags, Mapping) and any(flags.get(name) is True for name in CROWD)
        region = _region(kind, entry, size, where)
        is_box = kind == "rectangle" or kind in TURNED
        parts.append((group, Part(label, (region,), f"{where} ({label})", crowd, is_box)))
    shapes, boxes = join(parts)
    height, width = (whole(content.get(key)) or 0 for key in ("imageHeight", "imageWidth"))
    known = height > 0 and width > 0  # X-AnyLabeling writes -1 where it does not know
    return Labels(shapes, (height, width) if known else None, [*left_out, *boxes])


def _region(kind: object, entry: Mapping[str, Any], size: Size, where: str) -> Region:
    points = points_of(entry.get("points"), where)
    if kind == "polygon":
        return Polygon((points,))
    wanted = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "quadrilateral": (4,)}
    wanted |= dict.fromkeys(TURNED, (4,))
    if not isinstance(kind, str) or kind not in wanted:
        known = ", ".join(["polygon", *wanted, *NO_PIXELS])
        raise InputError(f"{where}: 'shape_type' is {kind!r:.40}, which is not known here; there are {known}")
    if len(points) not in wanted[kind]:
        raise InputError(f"{where}: a {kind} with {len(points)} points; it has {' or '.join(map(str, wanted[kind]))}")
    if kind == "circle":  # its middle, and a point of its line
        return disc(points[0], float(np.hypot(*(points[1] - points[0]))), size, where)
    if kind == "mask":
        return _mask(entry, points, size, where)
    if kind == "rectangle":
        return Polygon((rectangle(*points.min(0), *points.max(0)),))
    return Polygon((points,))


def _mask(entry: Mapping[str, Any], points: np.ndarray, size: Size, where: str) -> Bitmap:
    """Its points are the first and the last pixel of its box."""
    check_points(points, size, where)
    mask = png_mask(from_base64(entry.get("mask"), f"{where}: 'mask'"), size, f"{where}: 'mask'")
    extent = points[1] - points[0] + 1
    if (np.abs(extent - mask.shape[::-1]) > 1.5).any():
        box = f"its points span {extent[0]:g} x {extent[1]:g} pixels"
        raise InputError(f"{where}: its mask has {mask.shape[1]} x {mask.shape[0]} pixels, {box}")
    x, y = np.round(points[0]).astype(int)
    return Bitmap(mask, int(x), int(y))


main = converter(read)
