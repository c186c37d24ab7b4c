"""Panoptic ground truth of Cityscapes, made from gtFine with the conventions of cityscapesScripts' createPanopticImgs.

upsnet data cityscapes FOLDER: leftImg8bit/ and gtFine/ as the official archives have them. Written beside them, under
the official names: gtFine/cityscapes_panoptic_<split>.json and its folder of PNGs (`--train-ids`: ..._trainId).

What is the same: segment id = value of the instanceIds PNG; its label is the value below 1000, value // 1000 from there
up; labels with ignoreInEval are void; a thing's pixels without instance (value below 1000) are a crowd; category ids
are label ids, or train ids; areas, boxes and names of the PNGs. What is not: image ids are 1, 2, ... in the order of
the file names, as COCO's are integers, with Cityscapes' own id as "original_id"; and an image's file_name is where the
photo really lies under leftImg8bit/<split>.
"""

from __future__ import annotations

from functools import partial as bind
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from PIL import Image
from tqdm import tqdm

from upsnet.datasets.archives import config_lines
from upsnet.datasets.cityscapes_labels import FIRST_INSTANCE, LABELS, label_of_value
from upsnet.datasets.coco_format import id2rgb, read_panoptic_png
from upsnet.datasets.parallel import map_parallel, usable_cores
from upsnet.datasets.split import CITYSCAPES, Split
from upsnet.errors import InputError, first_line
from upsnet.files import write_json
from upsnet.photos import DECODE_ERRORS, write_png
from upsnet.run_lengths import Measured, Runs, find_runs, measure_runs, paint

IMAGES = {"train": 2975, "val": 500, "test": 1525}
LABEL_SUFFIX, PHOTO_SUFFIX, PNG_SUFFIX = "_gtFine_instanceIds.png", "_leftImg8bit.png", "_gtFine_panoptic.png"
ARCHIVES = {"leftImg8bit": "leftImg8bit_trainvaltest.zip", "gtFine": "gtFine_trainvaltest.zip"}
INSTANCE_MODES = ("L", "I", "I;16", "I;16B")  # Pillow's names of grey PNGs with 8 and 16 bits


class Pair(NamedTuple):
    """One image's files; `png` is to be made."""

    labels: Path
    photo: Path
    png: Path

    @property
    def original_id(self) -> str:
        """<city>_<sequence>_<frame>"""
        return self.labels.name.removesuffix(LABEL_SUFFIX)


class Converted(NamedTuple):
    width: int
    height: int
    segments: list[dict[str, Any]]  # segments_info
    written: bool  # False: the PNG was there already, with exactly these pixels


def make_split(folder: Path, split: str, train_ids: bool, workers: int) -> tuple[Split, int]:
    """Writes the PNGs of one split and then its JSON; returns the split and how many PNGs were new.

    A PNG that is there is decoded and compared, and written again unless it is right: an interrupted run is taken up
    where it stopped. An older JSON is removed first: it never stands beside PNGs of another making.
    """
    paths = Split.usual(folder / "gtFine" / f"{CITYSCAPES}{split}{'_trainId' if train_ids else ''}.json")
    pairs = find_pairs(folder, split, paths)
    paths.json_file.unlink(missing_ok=True)
    images, annotations, written = [], [], 0
    results = map_parallel(bind(convert, train_ids=train_ids), pairs, workers)
    for number, (pair, result) in enumerate(zip(pairs, tqdm(results, split, len(pairs), unit="image"), strict=True), 1):
        file_name = str(pair.photo.relative_to(paths.images))
        size = {"width": result.width, "height": result.height}
        images.append({"id": number, **size, "file_name": file_name, "original_id": pair.original_id})
        annotations.append({"image_id": number, "file_name": pair.png.name, "segments_info": result.segments})
        written += result.written
    write_json(paths.json_file, {"images": images, "annotations": annotations, "categories": categories(train_ids)})
    return paths, written


def find_pairs(folder: Path, split: str, paths: Split) -> list[Pair]:
    """Sorted by path. InputError naming what is missing and the official archive that has it."""
    labels = _by_name(_files(folder, "gtFine", split, LABEL_SUFFIX), LABEL_SUFFIX)
    photos = _by_name(_files(folder, "leftImg8bit", split, PHOTO_SUFFIX), PHOTO_SUFFIX)
    for have, lack, kind in ((labels, photos, "leftImg8bit"), (photos, labels, "gtFine")):
        lost = sorted(have.keys() - lack.keys())
        if lost:
            raise InputError(
                f"{folder / kind / split}: lacks {len(lost)} of {len(have)} images, the first is {lost[0]}; "
                f"unpack {ARCHIVES[kind]} again"
            )
    return [Pair(path, photos[name], paths.segments / f"{name}{PNG_SUFFIX}") for name, path in labels.items()]


def _files(folder: Path, kind: str, split: str, suffix: str) -> list[Path]:
    found = sorted((folder / kind / split).glob(f"*/*{suffix}"))
    if not found:
        raise InputError(f"{folder / kind / split}: no <city>/*{suffix}; unpack {ARCHIVES[kind]} in {folder}")
    return found


def _by_name(paths: list[Path], suffix: str) -> dict[str, Path]:
    """Keyed by <city>_<sequence>_<frame>. InputError where two cities have a file of one name."""
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(path.name.removesuffix(suffix), path)
        if other is not path:
            raise InputError(f"{other} and {path} have one name; Cityscapes has every image once")
    return named


def convert(pair: Pair, train_ids: bool) -> Converted:
    """Writes one PNG unless it is there. InputError naming the file that is damaged or does not fit."""
    values = read_instances(pair.labels)
    _check_photo(pair, values.shape)
    runs = find_runs(values)
    measured = measure_runs(runs)
    try:
        segments = describe(measured, train_ids)
    except KeyError as error:
        raise InputError(f"{pair.labels}: value {error} belongs to no label of Cityscapes") from None
    ids = keep_segments(runs, [segment["id"] for segment in segments])
    written = not _is_made(pair.png, ids)
    if written:
        write_png(pair.png, id2rgb(ids))
    return Converted(values.shape[1], values.shape[0], segments, written)


def describe(measured: Measured, train_ids: bool) -> list[dict[str, Any]]:
    """segments_info of the values in an instanceIds PNG, in rising order. KeyError(value) for one without a label."""
    segments = []
    for value, area, box in zip(*(array.tolist() for array in measured), strict=True):
        try:
            label = label_of_value(value)
        except KeyError:
            raise KeyError(value) from None
        if label.ignored:
            continue
        segments.append(
            {
                "id": value,
                "category_id": label.train_id if train_ids else label.id,
                "area": area,
                "bbox": box,
                "iscrowd": int(label.has_instances and value < FIRST_INSTANCE),
            }
        )
    return segments


def keep_segments(runs: Runs, ids: list[int]) -> np.ndarray:
    """The map of `runs` with 0 for every value that is not among `ids`."""
    return paint(runs, np.where(np.isin(runs.values, ids), runs.values, 0))


def read_instances(path: Path) -> np.ndarray:
    """An instanceIds PNG -> int32 H x W."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in INSTANCE_MODES:
                raise InputError(f"{path}: a PNG of mode {image.mode}; instanceIds are grey, of 16 bits")
            return np.asarray(image).astype(np.int32)
    except DECODE_ERRORS as error:
        raise InputError(f"{path}: not a readable PNG: {first_line(error)}") from error


def _check_photo(pair: Pair, shape: tuple[int, ...]) -> None:
    try:
        with Image.open(pair.photo) as image:  # the header alone
            size = image.size
    except DECODE_ERRORS as error:
        raise InputError(f"{pair.photo}: not a readable image: {first_line(error)}") from error
    if size != shape[::-1]:
        raise InputError(
            f"{pair.photo} is {size[0]} x {size[1]} pixels (width x height), {pair.labels} {shape[1]} x {shape[0]}"
        )


def _is_made(png: Path, ids: np.ndarray) -> bool:
    if not png.is_file():
        return False
    try:
        return np.array_equal(read_panoptic_png(png), ids)
    except InputError:  # of a run that was killed, or not ours: it is made anew
        return False


def categories(train_ids: bool) -> list[dict[str, Any]]:
    """The `categories` list of the JSON."""
    return [
        {
            "id": label.train_id if train_ids else label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.group,
            "isthing": int(label.has_instances),
        }
        for label in LABELS
        if not label.ignored
    ]


def check_count(folder: Path, split: str, count: int, partial: bool) -> None:
    if count == IMAGES[split]:
        return
    message = f"{folder / 'gtFine' / split}: {count} images; the official number is {IMAGES[split]}"
    if not partial:
        raise InputError(f"{message}; --partial accepts a part of the data")
    typer.echo(f"warning: {message}", err=True)


def main(
    folder: Annotated[Path, typer.Argument(help="Holds leftImg8bit and gtFine.", show_default=False)],
    split: Annotated[list[str], typer.Option(help="Which: train, val, test.")] = ["train", "val"],  # noqa: B006
    train_ids: Annotated[bool, typer.Option("--train-ids", help="Category ids 0..18 in place of 7..33.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Accept a part of the official images.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one for each core.")] = None,
) -> None:
    """Make the panoptic ground truth (COCO format) of a Cityscapes download; what is there already is not redone."""
    unknown = [name for name in split if name not in IMAGES]
    if unknown:
        raise InputError(f"--split {unknown[0]}: the splits are {', '.join(IMAGES)}")
    for name in split:
        check_count(folder, name, len(_files(folder, "gtFine", name, LABEL_SUFFIX)), partial)
    made = {}
    for name in split:
        made[name], written = make_split(folder, name, train_ids, usable_cores() if workers is None else workers)
        typer.echo(f"{made[name].json_file}: {written} PNGs written, the others were there")
    typer.echo("\nFor a configuration:\n" + config_lines(made))
