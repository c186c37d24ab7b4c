"""Which mask belongs to which photo, and where the table of classes is."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from upsnet.datasets.conversion.class_files import ClassRow, ClassTable, read_class_table
from upsnet.datasets.conversion.labels import Color
from upsnet.datasets.conversion.legend import values_in
from upsnet.datasets.conversion.mask_files import MASK_SUFFIXES
from upsnet.datasets.conversion.photo_folder import PhotoFolder, files_below
from upsnet.datasets.conversion.text import read_text
from upsnet.errors import InputError
from upsnet.sources import PHOTO_SUFFIXES

# Beside the masks or above them; the first that is there.
VOC_TABLES = ("labelmap.txt", "class_names.txt")
TABLES = (
    *(*VOC_TABLES, "class_dict.csv", "_classes.csv", "classes.json", "classes.csv"),
    *("classes.txt", "label_colors.txt", "labels.txt", "objectInfo150.txt", "config.json"),
)
VOC = ("SegmentationClass", "SegmentationClassPNG")  # labelme2voc wrote the second until 2023
VOC_OBJECTS = ("SegmentationObject", "SegmentationObjectPNG")
VOC_PHOTOS, VOC_LISTS = "JPEGImages", Path("ImageSets/Segmentation")
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
ALONE = "all"  # the split's name where there is one


class Pair(NamedTuple):
    """One photo and its mask, names below their folders."""

    photo: str
    mask: str


class Found(NamedTuple):
    masks: Path
    photos: Path
    instances: Path | None
    table: ClassTable
    splits: dict[str, list[Pair]]
    faults: list[str]
    remarks: list[str]


def find_masks(
    masks: Path, photos: Path | None, instances: Path | None, classes: Path | None, suffix: str = ""
) -> Found:
    """InputError where there is no folder of masks or photos, and no table of classes."""
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder; give the one that holds the masks")
    root = masks
    voc = next((masks / name for name in VOC if (masks / name).is_dir()), None)
    if voc is not None:
        masks, photos = voc, photos or root / VOC_PHOTOS
        instances = instances or next((root / name for name in VOC_OBJECTS if (root / name).is_dir()), None)
    if photos is None and not suffix:
        raise InputError(f"{masks}: give the folder of the photos, --photos")
    if instances is not None and not instances.is_dir():
        raise InputError(f"{instances}: no such folder; it should hold the masks of instances")
    by_stem = mask_stems(masks, suffix)
    if not by_stem:
        kinds = "*" + suffix + ", *".join(MASK_SUFFIXES)
        raise InputError(f"{masks}: holds no mask ({kinds}){_lossy(masks)}")
    table = _table(root, classes, voc is not None, masks / next(iter(by_stem.values())))
    remarks = [] if table.path == classes else [f"masks are read by {table.path}"]
    place = PhotoFolder(photos or masks)
    names = _without_masks(place, masks, by_stem, instances)
    pairs, faults, without = _paired(by_stem, names, place.folder)
    if lossy := _lossy_masks(masks, by_stem, suffix, place.folder, without):
        by_stem |= lossy
        names = _without_masks(place, masks, by_stem, instances)
        pairs, faults, without = _paired(by_stem, names, place.folder)
    remarks += _no_masks(masks, by_stem, instances, place.folder, names)
    if not pairs:
        raise InputError(f"{faults[0]}{_suffix_hint(by_stem, without)}")
    if without:
        remarks.append(f"{len(without):,} photos without a mask are left out, as {without[0]}; paint a mask for each")
    splits = {ALONE: pairs}
    if voc is not None and (root / VOC_LISTS).is_dir():
        splits = _listed(root / VOC_LISTS, pairs, suffix, faults, remarks) or splits
    return Found(masks, photos or masks, instances, table, splits, faults, remarks)


def _table(root: Path, classes: Path | None, is_voc: bool, mask: Path) -> ClassTable:
    """By which masks are read. VOC's layout says it itself, and `classes` then says what the classes are, not more."""
    beside = [folder / name for folder in (root, root.parent) for name in TABLES]
    own = next((path for path in beside[: len(VOC_TABLES)] if is_voc and path.is_file()), None)
    path = own or classes or next((path for path in beside if path.is_file()), None)
    if path is not None:
        return read_class_table(path)
    if is_voc:
        rows = [
            ClassRow(name, place, place, voc_color(place)) for place, name in [*enumerate(VOC_NAMES), (255, "void")]
        ]
        return ClassTable(Path("Pascal VOC (no labelmap.txt)"), rows)
    said = (
        f"give a table of classes, --classes: each name with its value or colour; {mask.name} holds {values_in(mask)}"
    )
    raise InputError(f"{root}: no table of classes is there ({', '.join(TABLES)}); {said}")


def voc_color(index: int) -> Color:
    """Pascal VOC's colour of a class: its bits, three by three, from the highest bit of each channel on."""
    bits = [[index >> (3 * step + channel) & 1 for step in range(8)] for channel in range(3)]
    red, green, blue = (sum(bit << (7 - step) for step, bit in enumerate(each)) for each in bits)
    return red, green, blue


def mask_stems(folder: Path, suffix: str = "") -> dict[str, str]:
    """The masks in a folder and below: name without ending and `suffix` -> name. Hidden files do not count."""
    found: dict[str, str] = {}
    for path in files_below(folder, MASK_SUFFIXES):
        if not os.path.splitext(path)[0].endswith(suffix):
            continue
        other = found.setdefault(key_of(path, suffix), path)
        if other != path:
            raise InputError(f"{folder}: {other} and {path} are masks of one photo; remove one")
    return found


def key_of(mask: str, suffix: str) -> str:
    """What a mask and its photo have in common: the name without ending and `suffix`."""
    return _key(os.path.splitext(mask)[0].removesuffix(suffix))


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", os.path.normpath(stem))


def _lossy_masks(masks: Path, stems: dict[str, str], suffix: str, photos: Path, without: list[str]) -> dict[str, str]:
    """JPEGs and their like in the place of the mask that a photo of `without` lacks, as `mask_stems`: who reads them
    says why they are refused."""
    bases = Counter(os.path.basename(_key(os.path.splitext(name)[0])) for name in without)
    below, are_photos = _below(masks, photos), set(without)
    found: dict[str, str] = {}
    for name in files_below(masks, PHOTO_SUFFIXES):
        key = key_of(name, suffix)
        if key in stems or not os.path.splitext(name)[0].endswith(suffix):
            continue
        itself = not suffix and os.path.normpath(os.path.join(below, name)) in are_photos
        if bases[os.path.basename(key)] > itself:
            found.setdefault(key, name)
    return found


def _no_masks(masks: Path, stems: dict[str, str], instances: Path | None, photos: Path, names: list[str]) -> list[str]:
    """What is to be said of the images among the masks that are neither masks nor photos."""
    below = _below(masks, photos)
    others = f"{_below(instances, masks)}/" if instances else "../"
    taken, are_photos = set(stems.values()), set(names)
    free = [
        name
        for name in files_below(masks, PHOTO_SUFFIXES)
        if name not in taken and os.path.normpath(os.path.join(below, name)) not in are_photos
    ]
    free = [name for name in free if not name.startswith(others)]
    return [f"{len(free):,} images in {masks} are the mask of no photo, as {free[0]}"] if free else []


def _below(folder: Path, root: Path) -> str:
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(root))


def _without_masks(photos: PhotoFolder, masks: Path, stems: dict[str, str], instances: Path | None) -> list[str]:
    """The names of the photos, which may lie in one folder with the masks or above them."""
    below = _below(masks, photos.folder)
    taken = {os.path.normpath(os.path.join(below, name)) for name in stems.values()}
    others = f"{_below(instances, photos.folder)}/" if instances else "../"
    return [name for name in photos.names() if name not in taken and not name.startswith(others)]


def _paired(masks: dict[str, str], names: list[str], folder: Path) -> tuple[list[Pair], list[str], list[str]]:
    """names: of the photos in `folder`. The pairs in their order, faults of masks without a photo, photos without a
    mask."""
    stems: dict[str, list[str]] = defaultdict(list)
    bases: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = _key(os.path.splitext(name)[0])
        for key in {stem, _key(name)}:  # a mask of a.jpg can be called a.jpg.png
            stems[key].append(name)
            bases[os.path.basename(key)].append(name)
    found: dict[str, Pair] = {}
    faults = []
    for key, mask in masks.items():
        fits = stems.get(key) or bases.get(os.path.basename(key), [])
        if len(fits) == 1 and fits[0] not in found:
            found[fits[0]] = Pair(fits[0], mask)
        elif len(fits) == 1:
            faults.append(f"{mask}: {found[fits[0]].mask} is a mask of the photo {fits[0]} too; remove one")
        elif fits:
            faults.append(f"{mask}: it can be the mask of {fits[0]} and of {fits[1]}; name it after one alone")
        else:
            faults.append(f"{mask}: no photo in {folder} is called {os.path.basename(key)}.*")
    return [found[name] for name in names if name in found], faults, [name for name in names if name not in found]


def _suffix_hint(masks: Iterable[str], photos: list[str]) -> str:
    """Where each photo's name begins that of a mask: what comes after it."""
    stems = sorted((os.path.splitext(os.path.basename(name))[0] for name in photos), key=len, reverse=True)
    mask = os.path.basename(next(iter(masks)))
    stem = next((stem for stem in stems if stem and mask.startswith(stem)), None)
    return "" if stem is None else f"; if it is that of {stem}: --suffix {mask.removeprefix(stem)}"


def _lossy(folder: Path) -> str:
    other = next((path.name for path in sorted(folder.iterdir()) if path.name.lower().endswith(PHOTO_SUFFIXES)), None)
    return "" if other is None else f"; {other} is none, as its kind changes values at every edge: write masks as PNG"


def _listed(
    folder: Path, pairs: list[Pair], suffix: str, faults: list[str], remarks: list[str]
) -> dict[str, list[Pair]]:
    """The splits of VOC's lists: without those whose names others have too (trainval), or that have no masks (test)."""
    by_stem = {key_of(pair.mask, suffix): pair for pair in pairs}
    lists = {path.stem: list(dict.fromkeys(_names(path))) for path in sorted(folder.glob("*.txt"))}
    splits: dict[str, list[Pair]] = {}
    for name, stems in sorted(lists.items(), key=lambda each: (len(each[1]), each[0])):
        others = {stem for other in splits for stem in lists[other]}
        if stems and others >= set(stems):
            remarks.append(f"{folder / name}.txt is left out: its names are those of {', '.join(splits)}")
        elif stems and not any(stem in by_stem for stem in stems):
            remarks.append(f"{folder / name}.txt is left out: none of its {len(stems)} images has a mask")
        elif twice := others & set(stems):
            raise InputError(f"{folder / name}.txt: {min(twice)} is in another list too; an image has one split")
        elif stems:
            splits[name] = [by_stem[stem] for stem in stems if stem in by_stem]
            faults += [f"{folder / name}.txt: {stem} has no mask" for stem in stems if stem not in by_stem]
    listed = {stem for name in splits for stem in lists[name]}
    unlisted = [pair for stem, pair in by_stem.items() if stem not in listed]
    if splits and unlisted:
        remarks.append(f"{len(unlisted):,} masks are in no list of {folder} and left out, as {unlisted[0].mask}")
    return {ALONE: next(iter(splits.values()))} if list(splits) == ["default"] else splits


def _names(path: Path) -> list[str]:
    """A name a line, without ending; in quotes where it has blanks, as CVAT writes it."""
    names = [line.strip().strip('"').replace("\\", "/") for line in read_text(path).splitlines()]
    return [_key(name) for name in names if name]
