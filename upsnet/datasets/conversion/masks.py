"""Masks: an image for each photo whose pixels hold classes, and if there is one, another whose pixels hold instances.

Classes are grey values (8 or 16 bits), indices of a palette or colours, as a table says (class_files.py). Instances are
numbers: what has one class and one number is one. Known is Pascal VOC's layout, which CVAT's "Segmentation mask 1.1"
and labelme2voc write: SegmentationClass, SegmentationObject, labelmap.txt or class_names.txt, JPEGImages,
ImageSets/Segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html), and Mapillary's numbers of
instances (class x 256 + instance) with its config.json.

Nothing is lost but what masks cannot say: which pixels are a crowd. A thing's pixels without an instance are one, as in
Cityscapes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial as bind
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from upsnet.datasets.conversion.command import converter
from upsnet.datasets.conversion.labels import Bitmap, Item, LabelClass, Labels, LeftOut, Shape, Size, Source
from upsnet.datasets.conversion.legend import UNLABELLED, Legend, class_places
from upsnet.datasets.conversion.mask_files import Pixels, instance_ids, read_pixels
from upsnet.datasets.conversion.mask_folders import Found, Pair, find_masks, key_of, mask_stems
from upsnet.datasets.panoptic_json import MOST_SEGMENTS
from upsnet.errors import InputError
from upsnet.run_lengths import Runs, connected, find_runs, measure_runs, paint

ID_BITS = 25  # of the numbers of instances: colours have 24, and Mapillary's are shifted by one


def read(
    masks: Annotated[
        Path,
        typer.Argument(
            help="The masks of classes, or a folder with SegmentationClass (VOC, CVAT).", show_default=False
        ),
    ],
    photos: Annotated[
        Path | None, typer.Option(help="The photos, which are called as their masks (default: JPEGImages).")
    ] = None,
    instances: Annotated[
        Path | None,
        typer.Option(help="The masks of instances, or a folder of such for each class (default: SegmentationObject)."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Names, and values or colours in the masks, ids, isthing: JSON, CSV or text (labelmap.txt)."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A value (255) or colour (224,224,192) that is void (default: 255, if it is no class)."),
    ] = None,
    pieces: Annotated[
        bool,
        typer.Option("--pieces", help="Without masks of instances: each connected piece of a class is an instance."),
    ] = False,
    suffix: Annotated[str, typer.Option(help="What the masks' names have after the photo's, as _mask.")] = "",
) -> Source:
    """Masks of classes, and of instances where there are any (PNG, TIFF, BMP) -> COCO panoptic.

    Grey values, palettes and colours, by a table of classes: --classes, or one beside the masks (labelmap.txt,
    class_dict.csv, _classes.csv, ...). Without masks of instances all classes are stuff, but for those that the table
    or --things calls things: each is one crowd in a photo.
    """
    found = find_masks(masks, photos, instances, classes, suffix)
    if pieces and found.instances is not None:
        raise InputError(f"--pieces: the instances are those of {found.instances}; leave out one of the two")
    legend = Legend.of(found.table, ignore)
    files = Readers(found, legend, suffix, pieces)
    splits = {
        name: [Item(found.photos / pair.photo, pair.photo, files.reader(pair)) for pair in pairs]
        for name, pairs in found.splits.items()
    }
    remarks = [*found.remarks, *legend.remarks()]
    has_instances = pieces or found.instances is not None
    if not has_instances and any(row.isthing for row in legend.rows):
        remarks.append(f"{legend.where} has things; without --instances or --pieces those of one class are a crowd")
    known = [
        LabelClass(
            place,
            row.name,
            row.id or 0,
            row.color,
            has_instances if row.isthing is None else row.isthing,
            row.void,
        )
        for place, row in enumerate(legend.rows)
    ]
    return Source("mask", masks, known, splits, faults=found.faults, remarks=remarks)


class Readers:
    """The function that reads the labels of a photo."""

    def __init__(self, found: Found, legend: Legend, suffix: str, pieces: bool = False) -> None:
        self._masks, self._legend, self._suffix, self._pieces = found.masks, legend, suffix, pieces
        self._numbers_all = found.table.numbers_all
        self._maps: dict[str, str] | None = None  # of instances: stem -> name
        self._by_class: dict[int, tuple[Path, dict[str, str]]] = {}
        if found.instances is None:
            return
        self._folder = found.instances
        self._maps = mask_stems(found.instances, suffix) or mask_stems(found.instances)
        folders = {entry.name: Path(entry.path) for entry in os.scandir(found.instances) if entry.is_dir()}
        places = {row.name: place for place, row in enumerate(legend.rows)}
        stems = (self._stem(pair.mask) for pairs in found.splits.values() for pair in pairs)
        if folders and folders.keys() <= places.keys() and not any(stem in self._maps for stem in stems):
            self._maps = None
            self._by_class = {
                places[name]: (folder, mask_stems(folder, suffix) or mask_stems(folder))
                for name, folder in folders.items()
            }

    def reader(self, pair: Pair) -> Callable[[Size], Labels]:
        mask, stem, legend = self._masks / pair.mask, self._stem(pair.mask), self._legend
        if self._by_class:
            maps = {place: folder / names[stem] for place, (folder, names) in self._by_class.items() if stem in names}
            return bind(read_maps_by_class, mask=mask, maps=maps, legend=legend)
        if self._pieces:
            return bind(read_pieces, mask=mask, legend=legend)
        instances = None
        if self._maps is not None:
            instances = self._folder / self._maps.get(stem, f"{stem}.png")
        return bind(read_masks, mask=mask, instances=instances, legend=legend, numbers_all=self._numbers_all)

    def _stem(self, mask: str) -> str:
        return key_of(mask, self._suffix)


def read_masks(size: Size, mask: Path, instances: Path | None, legend: Legend, numbers_all: bool = False) -> Labels:
    """The labels of one photo: what has one class and one instance is a shape."""
    pixels = read_pixels(mask, size)
    if not isinstance(pixels, Pixels):
        return Labels((), pixels)
    ids = np.zeros(pixels.codes.shape, np.int32)
    if instances is not None:
        ids = _instances(instances, pixels.codes.shape) + int(numbers_all)
    runs = find_runs(pixels.codes.astype(np.int64) << ID_BITS | ids)
    codes, place_of = np.unique(runs.values >> ID_BITS, return_inverse=True)
    places = class_places(legend, pixels, codes, mask)[place_of]
    numbers = runs.values & (1 << ID_BITS) - 1
    keys = np.where(places == UNLABELLED, UNLABELLED, places << ID_BITS | numbers)
    shapes = list(_shapes(runs._replace(values=keys), legend, mask, instances))
    lost = np.setdiff1d(numbers[places == UNLABELLED], np.append(numbers[places != UNLABELLED], 0))
    left_out = [LeftOut("instance without a class", f"{instances}: instance {number}") for number in lost.tolist()]
    return Labels(shapes, pixels.codes.shape, () if numbers_all else left_out)  # type: ignore[arg-type]


def read_pieces(size: Size, mask: Path, legend: Legend) -> Labels:
    """The same without instances: what is connected, over corners too, is one."""
    pixels = read_pixels(mask, size)
    if not isinstance(pixels, Pixels):
        return Labels((), pixels)
    runs = find_runs(pixels.codes)
    codes, place_of = np.unique(runs.values, return_inverse=True)
    runs = runs._replace(values=class_places(legend, pixels, codes, mask)[place_of])
    keys = np.where(runs.values == UNLABELLED, UNLABELLED, runs.values << ID_BITS | 1 + connected(runs))
    return Labels(list(_shapes(runs._replace(values=keys), legend, mask, mask)), pixels.codes.shape)  # type: ignore[arg-type]


def _shapes(runs: Runs, legend: Legend, mask: Path, instances: Path | None = None) -> Iterator[Shape]:
    """runs: of place << ID_BITS | number of the instance, or UNLABELLED. No two shapes share a pixel."""
    measured = measure_runs(runs)
    if len(measured.ids) > MOST_SEGMENTS:
        raise InputError(
            f"{instances or mask}: holds {len(measured.ids)} instances, as a photo does; the most is {MOST_SEGMENTS}"
        )
    whole = paint(runs, runs.values)
    for key, (x, y, width, height) in zip(measured.ids.tolist(), measured.boxes.tolist(), strict=True):
        if key == UNLABELLED:
            continue
        place, number = key >> ID_BITS, key & (1 << ID_BITS) - 1
        bitmap = Bitmap(whole[y : y + height, x : x + width] == key, x, y)
        name = f"{instances}: instance {number}" if number else f"{mask}: {legend.rows[place].name}"
        yield Shape(place, (bitmap,), name, crowd=not number, is_ground=True)


def _instances(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """int32 H x W: the number of each pixel's instance, or 0. shape: of the mask of classes."""
    pixels = read_pixels(path, shape)  # type: ignore[arg-type]
    size = pixels.codes.shape if isinstance(pixels, Pixels) else pixels
    if not isinstance(pixels, Pixels) or size != shape:
        sizes = f"{size[1]} x {size[0]} pixels (width x height), the mask of classes {shape[1]} x {shape[0]}"
        raise InputError(f"{path}: is of {sizes}")
    return instance_ids(pixels)


def read_maps_by_class(size: Size, mask: Path, maps: Mapping[int, Path], legend: Legend) -> Labels:
    """The same, where each class has its own map of instances. Those of two classes can overlap."""
    pixels = read_pixels(mask, size)
    if not isinstance(pixels, Pixels):
        return Labels((), pixels)
    codes, place_of = np.unique(pixels.codes, return_inverse=True)
    ground = class_places(legend, pixels, codes, mask)[place_of].reshape(pixels.codes.shape)
    shapes = []
    for place, path in maps.items():
        ids = _instances(path, ground.shape)
        ground[(ids != 0) & (ground == place)] = UNLABELLED
        runs = find_runs(np.where(ids == 0, UNLABELLED, np.int64(place) << ID_BITS | ids))
        shapes += [shape._replace(is_ground=False) for shape in _shapes(runs, legend, mask, path)]
    runs = find_runs(np.where(ground == UNLABELLED, UNLABELLED, ground << ID_BITS))
    return Labels([*_shapes(runs, legend, mask), *shapes], ground.shape)  # type: ignore[arg-type]


main = converter(read)
