"""A data set in the COCO panoptic format, read image by image: photos, truth maps and categories, without PyTorch."""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, overload

import numpy as np

from upsnet.categories import Categories, Category
from upsnet.datasets.coco_format import read_panoptic_json, read_panoptic_png
from upsnet.datasets.segments import SegmentInfo, integer
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.manifest import Manifest
from upsnet.photos import read_turned, turn_words
from upsnet.result import PanopticResult, Segment
from upsnet.run_lengths import areas_and_boxes

MOST_ID = (1 << 63) - 1
MOST_SIDE = (1 << 31) - 1


class Record(NamedTuple):
    """One image of the data set: where its photo and truth lie, and the truth's segments."""

    image_id: int
    file_name: str  # as the JSON has it: below the folder of the photos
    photo: Path
    png: Path
    segments: list[SegmentInfo]
    size: tuple[int, int] | None = None  # height, width where the JSON has them


# Image id, names of the photo and the PNG in their folders, segments, size
Row = tuple[int, str, str, list[SegmentInfo], tuple[int, int] | None]


class Records(Sequence[Record]):
    """Records by place, packed: 118 000 images of COCO take 40 MB, and 670 MB as Python objects.

    The bytes of all records are one object, so that forked workers go on sharing it: reading a Python object writes to
    its reference count, and each worker would end up with a copy of every one.
    """

    def __init__(self, rows: Iterable[Row], split: Split) -> None:
        self._split = split
        packed, starts, ids, sizes = bytearray(), array("q", [0]), array("q"), array("i")
        for row in rows:
            packed += pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
            starts.append(len(packed))
            ids.append(row[0])
            sizes.extend(row[4] or (0, 0))
        self._packed, bounds = bytes(packed), np.array(starts, np.int64)
        self._starts, self._ends = bounds[:-1], bounds[1:]
        self.image_ids = np.array(ids, np.int64)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)  # height, width; 0, 0 where the JSON has none

    def by_image_id(self) -> Records:
        """The same records in rising order of the image ids; nothing is copied but the order."""
        order = np.argsort(self.image_ids, kind="stable")
        other = Records([], self._split)
        other._packed, other._starts, other._ends = self._packed, self._starts[order], self._ends[order]
        other.image_ids, other.sizes = self.image_ids[order], self.sizes[order]
        return other

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        content = memoryview(self._packed)[self._starts[index] : self._ends[index]]
        image_id, photo, png, segments, size = pickle.loads(content)
        return Record(image_id, photo, self._split.images / photo, self._split.segments / png, segments, size)


class PanopticFolder:
    """The records of one COCO panoptic JSON, in the order of its images; every photo and PNG is there.

    Raises InputError naming the image: listed twice, without annotation, photo or truth PNG missing, segments without
    an id of their own or of an unknown category.
    """

    def __init__(self, split: Split | Path) -> None:
        """A JSON's path alone is enough where its folders are the usual ones."""
        self.split = split if isinstance(split, Split) else Split.usual(split)
        json_file = self.split.json_file
        content = read_panoptic_json(json_file)
        try:
            self.categories = Categories.from_coco(content["categories"])
        except InputError as error:
            raise InputError(f"{json_file}: {error}") from None
        self._known = {category.id for category in self.categories}
        self.records = Records(self._rows(content), self.split)
        if not self.records:
            raise InputError(f"{json_file}: lists no images, so there is nothing to evaluate")

    def _rows(self, content: dict[str, Any]) -> Iterator[Row]:
        photos, pngs = Listing(self.split.images), Listing(self.split.segments)
        annotations = self._by_id(content["annotations"], "image_id", "an annotation", "has two annotations")
        images = self._by_id(content["images"], "id", "an image", "is listed twice")
        for image_id, entry in images.items():
            if image_id not in annotations:
                raise InputError(f"{self.split.json_file}: image {image_id} has no annotation")
            yield self._row(image_id, entry, annotations[image_id], photos, pngs)
        unlisted = sorted(str(image_id) for image_id in annotations.keys() - images.keys())
        if unlisted:
            raise InputError(f"{self.split.json_file}: image {unlisted[0]} is annotated but not among the images")

    def _by_id(self, entries: list[Any], key: str, what: str, twice: str) -> dict[int, dict[str, Any]]:
        table: dict[int, dict[str, Any]] = {}
        for entry in entries:
            image_id = _field(entry, key, f"{self.split.json_file}: {what}")
            if not isinstance(image_id, int) or abs(image_id) > MOST_ID:
                raise InputError(
                    f"{self.split.json_file}: {what} has the {key} {image_id!r:.40}: image ids must be integers"
                )
            if image_id in table:
                raise InputError(f"{self.split.json_file}: image {image_id} {twice}")
            table[image_id] = entry
        return table

    def _row(
        self, image_id: int, entry: dict[str, Any], annotation: dict[str, Any], photos: Listing, pngs: Listing
    ) -> Row:
        where = f"{self.split.json_file}: image {image_id}"
        photo, png = _name(entry, where), _name(annotation, where)
        if photo not in photos:
            raise InputError(f"{where}: its photo {self.split.images / photo} is missing")
        if png not in pngs:
            raise InputError(f"{where}: its truth {self.split.segments / png} is missing")
        segments = self._segments(_field(annotation, "segments_info", where), where)
        height, width = entry.get("height"), entry.get("width")
        size = (height, width) if _is_side(height) and _is_side(width) else None
        return image_id, photo, png, segments, size

    def _segments(self, infos: Any, where: str) -> list[SegmentInfo]:
        """InputError unless each has an id of its own and a known category. Without iscrowd it is no crowd."""
        if not isinstance(infos, list):
            raise InputError(f"{where}: its segments_info is not a list")
        segments: dict[int, SegmentInfo] = {}
        for info in infos:
            category = _field(info, "category_id", f"{where}: a segment")
            number = info.get("id")
            if not isinstance(category, int) or category not in self._known:
                raise InputError(f"{where}: segment {number} has the unknown category {category}")
            if not isinstance(number, int) or number < 1:
                raise InputError(f"{where}: every segment needs an id, an integer from 1 up, not {number!r}")
            if number in segments:
                raise InputError(f"{where}: segment {number} is listed twice")
            crowd = "iscrowd" in info and integer(info, "iscrowd", f"{where}: segment {number}") == 1
            segments[number] = SegmentInfo(number, category, crowd, info.get("area"))
        return list(segments.values())

    def __len__(self) -> int:
        return len(self.records)

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Photo uint8 H x W x 3 and truth ids int32 H x W (0 = void); InputError when their sizes differ."""
        (photo, orientation), ids = read_turned(record.photo), read_panoptic_png(record.png)
        if photo.shape[:2] != ids.shape:
            turned = turn_words(orientation, photo.shape[1::-1], ids.shape[::-1])
            raise InputError(
                f"image {record.image_id}: the photo {record.photo} is {_size(photo)} pixels (width x height), "
                f"its truth {record.png} {_size(ids)}{turned}"
            )
        return photo, ids


class Listing:
    """The files below a folder. Each folder is listed once: asking for every file costs ten times as much."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        below, base = os.path.split(name)
        if below not in self._names:
            self._names[below] = self._list(self._root / below)
        return base in self._names[below]

    @staticmethod
    def _list(folder: Path) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(folder) if entry.is_file()} if folder.is_dir() else set()
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error


def check_categories(dataset: PanopticFolder, manifest: Manifest) -> None:
    """InputError naming the categories in which data set and model differ (id, name, thing or stuff)."""
    truth = {category.id: category for category in dataset.categories}
    model = {category.id: category for category in manifest.categories}
    differences = []
    for category_id in sorted(truth.keys() | model.keys()):
        mine, theirs = truth.get(category_id), model.get(category_id)
        if mine is None or theirs is None:
            only, where = (mine, "the data set") if theirs is None else (theirs, "the model")
            assert only is not None
            differences.append(f"{category_id} '{only.name}' only in {where}")
        elif (mine.name, mine.isthing) != (theirs.name, theirs.isthing):
            differences.append(f"{category_id} {_describe(mine)} in the data set, {_describe(theirs)} in the model")
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise InputError(
            f"{dataset.split.json_file}: its categories are not those of the model '{manifest.name}': "
            f"{'; '.join(differences[:5])}{more}; give the data set that the model was trained for"
        )


def truth_result(record: Record, ids: np.ndarray, categories: Categories) -> PanopticResult:
    """The truth in the form of a prediction (ids renumbered from 1, score 1), to be drawn like one."""
    found = areas_and_boxes(ids)
    renumbered, segments = np.zeros(ids.shape, np.int32), []
    for row, segment in enumerate(record.segments, 1):
        renumbered[ids == segment.id] = row
        area, box = found.get(segment.id, (0, (0, 0, 0, 0)))
        segments.append(Segment(row, categories.index_of_id(segment.category_id), 1.0, area, box))
    return PanopticResult(renumbered, segments)


def _field(entry: object, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{where} has no '{key}'")
    return entry[key]


def _name(entry: object, where: str) -> str:
    value = _field(entry, "file_name", where)
    if not isinstance(value, str):
        raise InputError(f"{where} has the file_name {value!r}: it must be a string")
    return value


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= MOST_SIDE


def _describe(category: Category) -> str:
    return f"'{category.name}' ({'thing' if category.isthing else 'stuff'})"


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
