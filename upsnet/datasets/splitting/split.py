"""One data set -> train, val and, if wanted, test, each in the usual layout. Photos and PNGs are hard links."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upsnet import __version__
from upsnet.categories import Category
from upsnet.datasets.coco_format import check_panoptic_header
from upsnet.datasets.conversion.convert import place_photo
from upsnet.datasets.doctor.json_file import find_splits, in_folders, open_split
from upsnet.datasets.findings import Strict
from upsnet.datasets.maker import MAKER, check_only_listed, origin
from upsnet.datasets.panoptic_json import PanopticJson, Row
from upsnet.datasets.parallel import usable_cores
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.split import Split
from upsnet.datasets.splitting.duplicates import COARSE, FINE
from upsnet.datasets.splitting.stratify import stratify
from upsnet.datasets.splitting.together import Duplicates, Together, find_together
from upsnet.errors import InputError
from upsnet.files import staged_folder, write_json, write_text

NAMES = ("train", "val", "test")
LARGE = 0.1  # of all images: so many that look alike are hardly one picture


class SplitRules(NamedTuple):
    """Who goes where, and what is written."""

    val: float = 0.2  # of the images
    test: float = 0.0
    seed: int = 0
    keep_together: str | None = None  # "folder", or a regular expression on the photos' names
    duplicates: Duplicates = "near"  # kept together: photos that look alike, files that are equal, or none
    replace: bool = False  # an earlier split of the same data set
    copy: bool = False
    workers: int | None = None


class ClassShare(NamedTuple):
    """What each side has of a category, crowds not counted."""

    category: Category
    images: dict[str, int]
    segments: dict[str, int]
    groups: int  # of images with it


@dataclass
class Made:
    """The splits that were written."""

    source: Split
    splits: dict[str, Split]
    images: dict[str, int]
    pixels: dict[str, int]  # of the photos whose size the JSON has
    classes: list[ClassShare]
    groups: dict[str, list[list[str]]]  # by side: the photos of each group of more than one
    flat: list[str] = field(default_factory=list)  # photos without contrast: only the same file counts as a duplicate
    unmatched: list[str] = field(default_factory=list)  # photos whose name the pattern does not match
    warnings: list[str] = field(default_factory=list)  # about the source, as the doctor has them, and large groups


class Images(NamedTuple):
    """Of the source, sorted by the photos' names."""

    ids: list[int]
    photos: list[str]
    pixels: np.ndarray  # int N; 0 where the JSON has no size
    segments: np.ndarray  # int N x C, by category, without crowds


STRICT = SplitRules()


def split_dataset(
    data: Split | Path, out: Path | None = None, rules: SplitRules = STRICT, progress: bool = True
) -> Made:
    """data: a JSON in its usual place, or a folder with one data set. out: default the
    folder, or that of the JSON.

    OUT/train.json, OUT/panoptic_train/, OUT/train/, and so on, appear all at once or not at all, and beside them
    OUT/NAME_split.json, which says what was kept together. The same data, rules and seed give the same sides, whatever
    the order in the JSON and the number of workers.
    Raises InputError for what the doctor calls an error in the JSON, photos that cannot be read (unless `duplicates` is
    "off"), files that are no panoptic PNGs (by their headers: the doctor reads them whole), shares and patterns that
    make no sense, and a target that is there already.
    """
    shares = _shares(rules)
    source = data if isinstance(data, Split) else _find(data)
    out = out or (data if isinstance(data, Path) and data.is_dir() else source.json_file.parent)

    def in_the_way() -> list[Path]:
        return _in_the_way(source, out, list(shares), rules.replace)

    in_the_way()  # before the work; and again when it is done, as another run may have written there
    strict = Strict(source.json_file)
    chart = PanopticJson(source, strict)
    images = _read_images(chart, source)
    if len(images.ids) < len(shares):
        raise InputError(f"{source.json_file}: {len(images.ids)} images are too few for {', '.join(shares)}")
    workers = usable_cores() if rules.workers is None else rules.workers
    together = find_together(images.photos, source.images, rules.keep_together, rules.duplicates, workers, progress)
    firsts, group_of = np.unique(together.groups, return_inverse=True)
    if len(firsts) < len(shares):
        raise InputError(
            f"{source.json_file}: its {len(images.ids)} images are {len(firsts)} group{'s' * (len(firsts) > 1)} of "
            f"images that belong together, too few for {', '.join(shares)}; {together.cure(len(shares))}"
        )
    sizes = np.bincount(group_of)
    counts = np.zeros((len(sizes), images.segments.shape[1]), np.int32)
    np.add.at(counts, group_of, images.segments > 0)
    sides = stratify(counts, sizes, _targets(shares, len(images.ids)), rules.seed)
    made = _describe(source, out, chart, images, group_of, sides, (counts > 0).sum(axis=0), list(shares))
    made.flat, made.unmatched = together.flat, together.unmatched
    made.warnings = [*strict.warnings.lines(source.json_file), *_warn_of_looks(made, together)]
    _write(made, out, chart, images, sides[group_of], rules, in_the_way, progress)
    return made


def _shares(rules: SplitRules) -> dict[str, float]:
    for name, share in (("--val", rules.val), ("--test", rules.test)):
        if not 0 <= share < 1:
            raise InputError(f"{name} {share:g}: give a share of the images between 0 and 1, as 0.2")
    if not rules.val:
        raise InputError("--val 0: training needs images to validate on; give a share, as 0.2")
    if rules.val + rules.test >= 1:
        raise InputError(f"--val {rules.val:g} and --test {rules.test:g} leave nothing to train on")
    shares = dict(zip(NAMES, (1 - rules.val - rules.test, rules.val, rules.test), strict=True))
    return {name: share for name, share in shares.items() if share}


def _targets(shares: dict[str, float], images: int) -> list[int]:
    """Images of each side, at least one."""
    others = [max(1, round(share * images)) for share in list(shares.values())[1:]]
    while sum(others) >= images:
        others[others.index(max(others))] -= 1
    return [images - sum(others), *others]


def _find(data: Path) -> Split:
    if not data.is_dir():
        if not data.is_file():
            raise InputError(f"{data}: no such file or folder")
        return in_folders(open_split(data))
    splits = [split for split in find_splits(data) if isinstance(split, Split)]
    own = splits if len(splits) == 1 else [split for split in splits if not origin(split.json_file)]
    if len(own) != 1:
        names = ", ".join(str(split.json_file) for split in own or splits)
        raise InputError(f"{data}: which of its data sets shall be split? Give one JSON: {names}")
    return own[0]


def _in_the_way(source: Split, out: Path, names: Sequence[str], replace: bool) -> list[Path]:
    """Files and folders of an earlier split of this data set. InputError where they may not be removed."""
    old: list[Path] = []
    for name in NAMES:
        split = Split.usual(out / f"{name}.json")
        there = [path for path in (split.json_file, split.segments, split.images) if os.path.lexists(path)]
        if not there:
            continue
        ours = split.json_file.is_file() and origin(split.json_file) == _key(source)
        if name in names and split.json_file.exists() and split.json_file.samefile(source.json_file):
            cure = "give another --out, or convert it with --name all"
            raise InputError(f"{split.json_file}: is the data set that shall be split; {cure}")
        if ours and (replace or name not in names):
            if not replace:
                raise InputError(f"{there[0]}: is of an earlier split; give another --out, or --replace")
            check_only_listed(split)
            old += there
        elif name in names:
            cure = ", or --replace" if ours else "; it is no earlier split of this data set"
            raise InputError(f"{there[0]}: is there already; give another --out{cure}")
    return old


def _key(source: Split) -> str:
    return source.json_file.name


def _read_images(chart: PanopticJson, source: Split) -> Images:
    columns = {number: index for index, number in enumerate(chart.categories)}
    ids: list[int] = []
    photos: list[str] = []
    pixels: list[int] = []
    segments: list[np.ndarray] = []
    for row in chart.rows():
        try:
            check_panoptic_header(source.segments / row.png)
        except InputError as error:
            raise InputError(f"{source.json_file}: image {row.image_id}: {error}") from None
        ids.append(row.image_id)
        photos.append(row.photo)
        pixels.append(row.size[0] * row.size[1] if row.size else 0)
        segments.append(_count(row, columns))
    order = sorted(range(len(ids)), key=photos.__getitem__)
    table = np.stack([segments[index] for index in order]) if order else np.zeros((0, len(columns)), np.uint16)
    return Images([ids[i] for i in order], [photos[i] for i in order], np.array(pixels)[order], table)


def _count(row: Row, columns: dict[int, int]) -> np.ndarray:
    found = [columns[each.category_id] for each in row.segments if not each.iscrowd]
    return np.bincount(found, minlength=len(columns)).astype(np.uint16)  # an image has less than 2^15 segments


def _warn_of_looks(made: Made, together: Together) -> Iterator[str]:
    """Where it is looks that make a large group: photos of one kind, as X-rays, are not one picture."""
    largest, before = (int(np.bincount(groups).max()) for groups in (together.groups, together.not_by_looks))
    total = len(together.groups)
    if largest > LARGE * total and largest >= 2 * before:
        side, photos = max(
            ((side, each) for side in made.groups for each in made.groups[side]), key=lambda of: len(of[1])
        )
        yield (
            f"{made.source.json_file}: {largest:,} of {total:,} images ({100 * largest / total:.0f} %) look alike and "
            f"are all in {side}, {photos[0]} and {photos[1]} among them; where they do not show one picture, give "
            "--duplicates same"
        )


def _describe(
    source: Split,
    out: Path,
    chart: PanopticJson,
    images: Images,
    group_of: np.ndarray,
    sides: np.ndarray,
    groups_with: np.ndarray,
    names: list[str],
) -> Made:
    side_of = sides[group_of]
    within = {name: side_of == side for side, name in enumerate(names)}
    have = {name: (images.segments[rows] > 0).sum(axis=0).tolist() for name, rows in within.items()}
    segments = {name: images.segments[rows].sum(axis=0, dtype=int).tolist() for name, rows in within.items()}
    classes = [
        ClassShare(
            category,
            {name: have[name][column] for name in names},
            {name: segments[name][column] for name in names},
            int(groups_with[column]),
        )
        for column, category in enumerate(chart.categories.values())
    ]
    members: dict[int, list[str]] = defaultdict(list)
    for group, photo in zip(group_of.tolist(), images.photos, strict=True):
        members[group].append(photo)
    groups: dict[str, list[list[str]]] = {name: [] for name in names}
    for group, photos in members.items():
        if len(photos) > 1:
            groups[names[sides[group]]].append(photos)
    return Made(
        source,
        {name: Split.usual(out / f"{name}.json") for name in names},
        {name: int(rows.sum()) for name, rows in within.items()},
        {name: int(images.pixels[rows].sum()) for name, rows in within.items()},
        classes,
        groups,
    )


def _write(
    made: Made,
    out: Path,
    chart: PanopticJson,
    images: Images,
    side_of: np.ndarray,
    rules: SplitRules,
    in_the_way: Callable[[], list[Path]],
    progress: bool,
) -> None:
    info = chart.further.get("info")
    info = info if isinstance(info, dict) else {}
    side_by_id = dict(zip(images.ids, side_of.tolist(), strict=True))
    with (
        staged_folder(out, in_the_way) as stage,
        progress_bar(total=len(images.ids), title="links", shown=progress) as bar,
    ):
        for side, name in enumerate(made.splits):
            split = Split.usual(stage / f"{name}.json")
            for number, image in chart.images.items():
                if side_by_id[number] == side:
                    for folder, target, entry in _files(made.source, split, image, chart.annotations[number]):
                        place_photo(folder / entry, target / entry, rules.copy)
                    bar.update()
            kept = {
                "images": [each for number, each in chart.images.items() if side_by_id[number] == side],
                "annotations": [each for number, each in chart.annotations.items() if side_by_id[number] == side],
            }
            own = {"maker": MAKER, "version": __version__, "split_of": _key(made.source)}
            write_text(split.json_file, json.dumps(chart.further | kept | {"info": info | own}, allow_nan=False) + "\n")
        write_json(stage / f"{made.source.json_file.stem}_split.json", report(made, rules))


def _files(
    source: Split, split: Split, image: dict[str, Any], annotation: dict[str, Any]
) -> Iterator[tuple[Path, Path, str]]:
    yield source.images, split.images, image["file_name"]
    yield source.segments, split.segments, annotation["file_name"]


def report(made: Made, rules: SplitRules) -> dict[str, Any]:
    """The content of NAME_split.json."""
    return {
        "version": 1,
        "source": str(made.source.json_file),
        "made_by": f"{MAKER} {__version__}",
        "val": rules.val,
        "test": rules.test,
        "seed": rules.seed,
        "keep_together": rules.keep_together,
        "duplicates": rules.duplicates,
        "bits_that_may_differ": {"of_63_coarse": COARSE, "of_255": FINE} if rules.duplicates == "near" else None,
        "images": made.images,
        "classes": [
            {
                **{"id": each.category.id, "name": each.category.name, "kind": kind(each.category)},
                **{"images": each.images, "segments": each.segments, "groups": each.groups},
            }
            for each in made.classes
        ],
        "kept_together": made.groups,
        "flat_photos": made.flat,
        "names_without_match": made.unmatched,
    }


def kind(category: Category) -> str:
    return "thing" if category.isthing else "stuff"
