"""Labels -> a data set in the COCO panoptic format: OUT/NAME.json, OUT/panoptic_NAME/ and OUT/NAME/ with the photos."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from upsnet import __version__
from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.conversion.compose import Boxes, ClassCount, Composed, compose
from upsnet.datasets.conversion.labels import Item, Overlap, Source
from upsnet.datasets.conversion.table import Choice, Table, make_table, names_alike
from upsnet.datasets.doctor.check import Checkup
from upsnet.datasets.doctor.image import ImageTask, check_image, size_and_orientation
from upsnet.datasets.findings import Tally
from upsnet.datasets.maker import MAKER, REPORT, check_only_listed, info_if_ours
from upsnet.datasets.panoptic_json import PanopticJson
from upsnet.datasets.parallel import map_parallel, usable_cores
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.segments import SegmentInfo
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.files import staged_folder, write_json, writing
from upsnet.json_values import breaks_line
from upsnet.photos import SWAPPED, TURNS, write_png
from upsnet.run_lengths import areas_and_boxes

LONGEST = 100  # bytes of a split's name: that of its report, and a temporary one, must fit into a file system
FEW = 16  # images for which another process is not worth its start


class Rules(NamedTuple):
    """How labels become segments, and what is written."""

    overlap: Overlap | None = None  # None: the format's own
    boxes: Boxes = "refuse"
    name: str | None = None  # of the split, where the source has only one
    limit: int | None = None  # images of each split
    partial: bool = False  # leave out images that cannot be converted, rather than write nothing
    replace: bool = False  # an earlier conversion of the same name
    copy: bool = False  # photos; else they are hard links, where the file system has them
    workers: int | None = None


@dataclass
class Converted:
    """One split that was written, and what became of the labels."""

    checkup: Checkup  # the doctor's
    table: Table
    overlap: Overlap
    counts: dict[str, ClassCount] = field(default_factory=dict)  # by category name; "": void
    contested: int = 0  # pixels
    pixels: int = 0  # of all photos
    lost: list[str] = field(default_factory=list)  # shapes of which no segment came
    left_out: Counter[str] = field(default_factory=Counter)  # kinds of shapes that hold no pixels: "point", ...
    faults: list[str] = field(default_factory=list)  # images that are not in it, and why
    turned: int = 0  # photos that EXIF turns, of which the labels were turned too
    copied: int = 0  # photos; the others are hard links

    @property
    def split(self) -> Split:
        assert isinstance(self.checkup.split, Split)
        return self.checkup.split


class LabelFaults(InputError):
    """What cannot be converted, of each image its first fault. Nothing was written."""

    def __init__(self, source: Source, faults: Sequence[str], empty: str | None = None) -> None:
        """empty: a split of which no image is left without those with a fault."""
        self.faults = list(faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        cure = f"of '{empty}' no image is left" if empty else "mend it, or leave such images out with --partial"
        super().__init__(f"{source.path}: {count}, nothing is written: {faults[0]}{more}; {cure}")


ALL_THINGS, STRICT = Choice(), Rules()


class Done(NamedTuple):
    """What a worker made of an item."""

    item: Item
    size: tuple[int, int] = (0, 0)
    composed: Composed | None = None  # without its map
    left_out: Sequence[str] = ()
    tally: Tally | None = None
    turned: bool = False
    copied: bool = False
    fault: str | None = None


class Stage(NamedTuple):
    """Where a worker writes."""

    photos: Path
    pngs: Path
    table: Table
    overlap: Overlap
    boxes: Boxes
    copy: bool


def convert(
    source: Source, out: Path, choice: Choice = ALL_THINGS, rules: Rules = STRICT, progress: bool = True
) -> list[Converted]:
    """Write every split of the source, and look at each as `upsnet data check` does. All appear at once, or none.

    Beside NAME.json lies NAME_conversion.json, which says what became of the labels.
    Raises LabelFaults, an InputError, where images cannot be converted and `rules.partial` does not leave them out, and
    InputError for classes that do not fit and for a target that is there already.
    """
    if source.faults and not any(source.splits.values()):
        raise LabelFaults(source, source.faults)
    try:
        table = make_table(source.classes, choice)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None
    source.remarks += [said for said in names_alike(source.classes) if said not in source.remarks]
    if rules.limit is not None and rules.limit < 1:
        raise InputError(f"--limit {rules.limit}: give at least 1")
    splits = _named(source, rules.name)

    def in_the_way() -> list[Path]:
        return [file for name in splits for file in _in_the_way(out, name, rules.replace)]

    in_the_way()  # before the work; and again when it is done, as another run may have written there
    overlap = rules.overlap or source.overlap
    made: list[Converted] = []
    with staged_folder(out, in_the_way) as stage:
        for name, items in splits.items():
            made.append(_write_split(source, name, items[: rules.limit], stage, table, overlap, rules, progress))
        faults = [*source.faults, *(fault for each in made for fault in each.faults)]
        empty = next((each.split.json_file.stem for each in made if not each.checkup.tally.images), None)
        if faults and (empty or not rules.partial):
            raise LabelFaults(source, faults, empty)
        if empty:
            raise InputError(f"{source.path}: the split '{empty}' holds no labelled image; take it out")
        for each in made:
            each.faults = [*source.faults, *each.faults]
            each.checkup = each.checkup._replace(split=_split(out, each.split.json_file.stem))
            write_json(stage / f"{each.split.json_file.stem}{REPORT}", report(source, each, rules))
    return made


def _named(source: Source, name: str | None) -> dict[str, list[Item]]:
    """The splits by the names that they get."""
    if not any(source.splits.values()) and not source.faults:
        raise InputError(f"{source.path}: holds no labelled image")
    splits = {key: _distinct(items) for key, items in source.splits.items()}
    if name is None:
        odd = next((key for key in splits if not _is_plain(key)), None)
        if odd is not None:
            raise InputError(f"{source.path}: a split cannot be named '{odd}'; rename it there, as train")
        return splits
    if len(splits) > 1:
        raise InputError(
            f"--name {name}: {source.path} has several splits ({', '.join(splits)}), which have their names"
        )
    if not _is_plain(name):
        raise InputError(
            f"--name {name}: give a file's name without folder and suffix, as train, of at most {LONGEST} bytes"
        )
    return {name: next(iter(splits.values()))}


def _is_plain(name: str) -> bool:
    """Whether NAME.json, NAME_conversion.json, NAME/ and panoptic_NAME/ are those of this split alone."""
    odd = name.startswith((".", "panoptic_")) or name.endswith("_conversion") or breaks_line(name)
    return bool(name) and len(os.fsencode(name)) <= LONGEST and PurePosixPath(name).name == name and not odd


def _distinct(items: list[Item]) -> list[Item]:
    """Names that differ in more than their suffix: a PNG of segments is named after its photo. a.jpg, a.png: the second
    becomes a_png.png."""
    stems: dict[str, Path] = {}
    named = []
    for item in items:
        name = PurePosixPath(item.name)
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise InputError(f"'{item.name}' is not a name inside the folder of photos")
        stem = str(name.with_suffix(""))
        while stem in stems:
            if stems[stem] == item.photo:
                raise InputError(f"{item.photo}: the labels have this photo twice")
            name = name.with_stem(f"{name.stem}_{name.suffix[1:] or 'photo'}")
            stem = str(name.with_suffix(""))
        stems[stem] = item.photo
        named.append(item._replace(name=str(name)))
    return named


def _split(folder: Path, name: str) -> Split:
    return Split(json_file=folder / f"{name}.json", segments=folder / f"panoptic_{name}", images=folder / name)


def _in_the_way(out: Path, name: str, replace: bool) -> list[Path]:
    """Files and folders of an earlier conversion. InputError where they may not be removed."""
    split = _split(out, name)
    there = [path for path in (split.json_file, split.segments, split.images) if os.path.lexists(path)]
    if not there:
        return []
    if not replace:
        raise InputError(f"{there[0]}: is there already; give another --out, or --replace")
    if there[0] != split.json_file or info_if_ours(split.json_file) is None:
        raise InputError(f"{there[0]}: was not made by `{MAKER}`; give another --out")
    check_only_listed(split)
    return there


def _write_split(
    source: Source,
    name: str,
    items: list[Item],
    stage: Path,
    table: Table,
    overlap: Overlap,
    rules: Rules,
    progress: bool,
) -> Converted:
    split, tally = _split(stage, name), Tally()
    made = Converted(Checkup(split, {each.id: each for each in table.categories}, tally, 0.0), table, overlap)
    place = Stage(split.images, split.segments, table, overlap, rules.boxes, rules.copy)
    if any(item.image_id is None for item in items):
        items = [item._replace(image_id=number) for number, item in enumerate(items, 1)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder in (split.images, split.segments):
        folder.mkdir()
    workers = rules.workers or min(usable_cores(), 1 + len(items) // FEW)
    start = time.perf_counter()
    with progress_bar(total=len(items), title=name, shown=progress) as bar:
        for done in map_parallel(bind(_convert_item, stage=place), items, workers):
            bar.update()
            number = done.item.image_id
            if done.composed is None:
                shown = ascii(done.item.name) if breaks_line(done.item.name) else done.item.name
                made.faults.append(f"{shown}: {done.fault}")
                continue
            png = str(PurePosixPath(done.item.name).with_suffix(".png"))
            images.append({"id": number, "file_name": done.item.name, "height": done.size[0], "width": done.size[1]})
            annotations.append({"image_id": number, "file_name": png, "segments_info": done.composed.segments})
            _add(made, done)
    made.checkup = made.checkup._replace(seconds=time.perf_counter() - start)
    info = {"maker": MAKER, "description": f"{name}, from {source.format} labels", "version": __version__}
    content = {"info": info, "images": images, "annotations": annotations, "categories": table.to_coco()}
    write_json(split.json_file, content)
    for _ in PanopticJson(split, tally.note).rows() if images else ():
        pass
    return made


def _add(made: Converted, done: Done) -> None:
    composed, tally = done.composed, done.tally
    assert composed is not None and tally is not None
    for name, count in composed.counts.items():
        made.counts.setdefault(name, ClassCount()).add(count)
    made.contested += composed.contested
    made.pixels += done.size[0] * done.size[1]
    made.lost += [f"{done.item.name}: {text}" for text in composed.lost]
    made.left_out.update(done.left_out)
    made.turned += done.turned
    made.copied += done.copied
    made.checkup.tally.add(tally)


def _convert_item(item: Item, stage: Stage) -> Done:
    """In a worker: read, paint, write the PNG and place the photo."""
    photo = item.photo
    try:
        if breaks_line(item.name):
            raise InputError("its name has a line break or a control character; rename the photo")
        if item.unpack:
            photo = stage.photos / item.name
            item.unpack(photo)
        (width, height), orientation = size_and_orientation(str(photo))
        labels = item.read((height, width))
        size = labels.size or (height, width)
        turn = orientation in SWAPPED and height != width and size == (width, height)
        if not turn and size != (height, width):
            drawn = f"the labels are for {size[1]} x {size[0]} pixels, the photo has {width} x {height}"
            raise InputError(f"{drawn} (width x height); give the photos that the labels were drawn on")
        composed = compose(labels, size, stage.table, stage.overlap, stage.boxes)
    except InputError as error:
        if item.unpack:
            photo.unlink(missing_ok=True)
        return Done(item, fault=str(error))
    if turn:
        composed = turned(composed, orientation)
    png = stage.pngs / PurePosixPath(item.name).with_suffix(".png")
    write_png(png, id2rgb(composed.ids))
    copied = bool(item.unpack) or place_photo(photo, stage.photos / item.name, stage.copy)
    tally = Tally(images=1)
    segments = [
        SegmentInfo(info["id"], info["category_id"], bool(info["iscrowd"]), info["area"]) for info in composed.segments
    ]
    boxes: list[object] = [info["bbox"] for info in composed.segments]
    task = ImageTask(item.image_id or 0, str(photo), str(png), (height, width), segments, boxes)
    tally.report(check_image(task, tally, ((width, height), orientation)))
    composed.ids = np.zeros((0, 0), np.int32)  # it is not sent back
    return Done(item, (height, width), composed, [each.kind for each in labels.left_out], tally, turn, copied)


def turned(composed: Composed, orientation: int) -> Composed:
    """The map of a photo as it is stored -> as EXIF turns it."""
    ids = np.asarray(Image.fromarray(composed.ids).transpose(TURNS[orientation]))
    found = areas_and_boxes(ids)
    segments = [info | {"bbox": list(found[info["id"]][1])} for info in composed.segments]
    return Composed(ids, segments, composed.counts, composed.contested, composed.lost)


def place_photo(photo: Path, target: Path, copy: bool = False) -> bool:
    """A hard link at `target`, or a copy where that cannot be or `copy` says so; True: it is a copy."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not copy:
            try:
                os.link(os.path.realpath(photo), target)
                return False
            except OSError:  # another file system, one without links, or another owner's file
                target.unlink(missing_ok=True)
        shutil.copyfile(photo, target)
    return True


def report(source: Source, made: Converted, rules: Rules) -> dict[str, Any]:
    """The content of NAME_conversion.json."""
    kinds = {each.name: "thing" if each.isthing else "stuff" for each in made.table.categories}
    return {
        "version": 1,
        "format": source.format,
        "source": str(source.path),
        "made_by": f"{MAKER} {__version__}",
        "overlap": made.overlap,
        "boxes": rules.boxes,
        "images": made.checkup.tally.images,
        "pixels": made.pixels,
        "contested_pixels": made.contested,
        "classes": [{"name": name, "kind": kinds.get(name, "void"), **vars(c)} for name, c in made.counts.items()],
        "shapes_without_segment": made.lost,
        "left_out": dict(made.left_out),
        "images_left_out": made.faults,
        "labels_turned_by_exif": made.turned,
        "photos_copied": made.copied,
        "remarks": source.remarks,
        "findings": made.checkup.tally.findings(),
    }
