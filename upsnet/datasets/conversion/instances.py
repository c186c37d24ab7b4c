"""COCO instances JSON (https://cocodataset.org/#format-data) -> COCO panoptic, with stuff from a second source if any.

Read are polygons (several are one object), both kinds of run lengths, crowds (`iscrowd`, and `ignore`, as some data
sets call it) and, where an annotation has no outline, its box. So are the JSONs that others write in this form: CVAT
(annotations/instances_default.json), Roboflow (train/_annotations.coco.json), LVIS, Label Studio, detectron2. The ids
of images and categories are kept; a category with COCO's own id and name gets COCO's colour.

Of overlapping objects the smaller is on top: the format has no order. It cannot hold holes (a ring inside a ring is
filled; run lengths can), which class is stuff (--stuff), and colours.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import typer

from upsnet.datasets.coco_table import coco_color
from upsnet.datasets.conversion.class_files import parse_color
from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.drawn import class_name
from upsnet.datasets.conversion.instance_entries import KEYS, read_annotations, slim
from upsnet.datasets.conversion.labels import Item, LabelClass, Labels, Size, Source, no_labels
from upsnet.datasets.conversion.photo_folder import PhotoFolder
from upsnet.datasets.conversion.stuff_maps import add_stuff
from upsnet.datasets.wrong_file import recognised
from upsnet.errors import InputError
from upsnet.files import read_json
from upsnet.json_values import MOST_ID, complaint, flag, whole

ROBOFLOW = "_annotations.coco"
NAMES = {"valid": "val", "validation": "val", "default": "all", "Default": "all", "training": "train"}
SPLIT = re.compile(r"(train|val|test)(20\d\d)?")  # COCO's have the year
LISTS = ("images", "annotations", "categories")
NOTHING = pickle.dumps([])
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
    ignore: Annotated[
        list[str] | None, typer.Option(help="A value of the stuff PNGs that is void (default: 255, if no class).")
    ] = None,
    no_crowds: Annotated[
        bool,
        typer.Option("--no-crowds", help="`iscrowd` is no crowd: CVAT and datumaro write it for every drawn mask."),
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Photos that the JSON does not list are images without objects.")
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
        source.splits[name] = _Reader(source, file, content, own, photos, no_crowds, unlabelled).items()
    for each in [each for each in source.classes if all(each.id in found for found in roots)]:
        source.classes.remove(each)
        source.remarks.append(f"the category '{each.name}' ({each.id}) is Roboflow's name for all, and left out")
    if stuff_pngs and stuff_classes:
        add_stuff(source, stuff_pngs, stuff_classes, stuff_zero_based, ignore)
    return source


def find_jsons(path: Path) -> dict[str, Path]:
    """Split -> JSON. A folder: Roboflow's, or annotations/instances_*.json, or the JSONs in it. InputError for none.

    Splits are called as their JSONs, train2017 as train; one JSON that is called something else is `all`.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give COCO's instances JSON")
        name = _split_name(path)
        return {name if SPLIT.fullmatch(name) else "all": path}
    for pattern in (f"*/*{ROBOFLOW}.json", "annotations/instances_*.json", "*.json"):
        found = sorted(each for each in path.glob(pattern) if not each.name.startswith("."))
        named = {_split_name(each): each for each in found}
        if len(named) < len(found):
            raise InputError(f"{path}: several JSONs make a split of one name, as {found[0]}; give one of them")
        if len(found) == 1:
            return find_jsons(found[0])
        if found:
            return named
    raise InputError(f"{path}: no JSON in it, in annotations/ (instances_*.json) or in its folders (*{ROBOFLOW}.json)")


def _split_name(file: Path) -> str:
    name = file.stem.removeprefix("instances_").removeprefix("lvis_v1_")
    if name.endswith(ROBOFLOW):
        name = file.absolute().parent.name
    split = SPLIT.fullmatch(name)
    return split[1] if split else NAMES.get(name, name)


def _content(file: Path) -> dict[str, list[Any]]:
    content = read_json(file, slim)
    if not isinstance(content, Mapping) or "annotations" not in content or not isinstance(content["annotations"], list):
        raise InputError(f"{file}: {WANTED}{_other(content)}")
    if any(isinstance(each, Mapping) and "segments_info" in each for each in content["annotations"][:100]):
        raise InputError(f"{file}: {PANOPTIC}")
    for key in LISTS:
        if not isinstance(content.get(key), list):
            raise InputError(f"{file}: no list '{key}'; {WANTED}")
    return {key: content[key] for key in LISTS}


def _other(content: object) -> str:
    return f"; this is {other.name}; {other.cure}" if (other := recognised(content)) else ""


def _classes(entries: Sequence[Any], file: Path) -> list[LabelClass]:
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
        color = parse_color(entry.get("color")) or coco_color(number, name)
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
        no_crowds: bool,
        unlabelled: bool,
    ) -> None:
        self._source, self._file, self._content = source, file, content
        self._classes = {each.id: each.name for each in classes}
        self._folder = PhotoFolder(photos or photo_place(file))
        self._no_crowds, self._unlabelled = no_crowds, unlabelled

    def items(self) -> list[Item]:
        faults = self._source.faults
        images = {image.id: image for image in self._images()}
        packed = self._packed(images)
        items, bare = [], []
        photos = self._photos(images.values())
        uses = Counter(photos.values())
        for image in images.values():
            if image.id not in photos:
                continue
            name = photos[image.id]
            if uses[name] > 1:
                faults.append(f"{self._file.name}: image {image.id}: its photo {name} is another image's too")
                continue
            if image.id not in packed:
                bare.append(name)
            reader = partial(
                read_packed,
                packed=packed.pop(image.id, NOTHING),
                names=self._classes,
                drawn_on=image.size,
                file=self._file.name,
                no_crowds=self._no_crowds,
            )
            items.append(Item(self._folder.path(name), name, reader, image.id))
        if bare:
            what = "images have no annotation, which means no objects"
            self._source.remarks.append(f"{self._file.name}: {len(bare):,} {what}, as {bare[0]}")
        self._source.remarks += self._folder.remarks()
        return items + self._others(uses.keys(), [item.image_id or 0 for item in items])

    def _photos(self, images: Iterable[Image]) -> dict[int, str]:
        """By image, its photo's name in the folder. Those without are faults."""
        found = {}
        for image in images:
            try:
                found[image.id] = self._folder.find(image.name)
            except InputError as error:
                self._source.faults.append(f"{self._file.name}: image {image.id}: {error}")
        return found

    def _packed(self, images: Collection[int]) -> dict[int, bytes]:
        """By image, its annotations and their places in the list, pickled: a hundred thousand images wait for their
        turn, and Python's objects would take several times the memory."""
        faults, annotations = self._source.faults, self._content["annotations"]
        grouped: dict[int, list[int]] = defaultdict(list)
        unlisted: dict[int, list[int]] = defaultdict(list)
        drawn = 0
        for place, entry in enumerate(annotations):
            where = f"{self._file.name}: annotations[{place}]"
            if not isinstance(entry, Mapping):
                faults.append(f"{where} is not an object: {entry!r:.40}")
                continue
            image_id = whole(entry.get("image_id"))
            if image_id is None:
                faults.append(f"{where}: {complaint(entry, 'image_id')}")
            elif image_id not in images:
                unlisted[image_id].append(place)
            else:
                grouped[image_id].append(place)
                drawn += _is_drawn_crowd(entry)
        for image_id, places in unlisted.items():
            where = f"{self._file.name}: annotations[{places[0]}]"
            more = f" (and those of {len(places) - 1:,} more annotations)" if len(places) > 1 else ""
            faults.append(f"{where}: its image {image_id}{more} is not among the images; list it there")
        if drawn and not self._no_crowds:
            crowds = f"{drawn:,} annotations are crowds, and so are all masks that CVAT and datumaro write"
            self._source.remarks.append(f"{self._file.name}: {crowds}; if they are single objects: --no-crowds")
        packed = {}
        for image_id, places in grouped.items():
            entries = []
            for place in places:
                entry, annotations[place] = annotations[place], None
                entries.append((place, {key: entry[key] for key in KEYS if key in entry}))
            packed[image_id] = pickle.dumps(entries, pickle.HIGHEST_PROTOCOL)
        return packed

    def _others(self, taken: Collection[str], numbers: Sequence[int]) -> list[Item]:
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


def _is_drawn_crowd(entry: Mapping[str, Any]) -> bool:
    """Whether it may be a mask that datumaro wrote: to it, run lengths are crowds and all has `attributes`."""
    return bool(entry.get("iscrowd")) and "attributes" in entry and isinstance(entry.get("segmentation"), Mapping)


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


def read_packed(
    size: Size, packed: bytes, names: Mapping[int, str], drawn_on: Size | None, file: str, no_crowds: bool
) -> Labels:
    return read_annotations(pickle.loads(packed), names, drawn_on, file, no_crowds)


main = converter(read)
