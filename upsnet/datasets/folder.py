"""A data set in the COCO panoptic format, read image by image: photos, truth maps and categories, without PyTorch."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np

from upsnet.categories import Categories, differences
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.doctor.image import ImageTask, check_segments, check_sizes
from upsnet.datasets.findings import Strict
from upsnet.datasets.panoptic_json import PanopticJson, Row
from upsnet.datasets.places import File, Files, together
from upsnet.datasets.segments import SegmentInfo
from upsnet.datasets.split import ShardSplit, Split, usual_split
from upsnet.errors import InputError, reworded
from upsnet.files import PathLike
from upsnet.manifest import Manifest
from upsnet.photos import Least, read_turned
from upsnet.result import PanopticResult, Segment
from upsnet.run_lengths import areas_and_boxes


class Record(NamedTuple):
    """One image of the data set: where its photo and truth lie, and the truth's segments."""

    image_id: int
    file_name: str  # as the JSON has it: below the folder of the photos
    photo: File
    png: File
    segments: list[SegmentInfo]
    size: tuple[int, int] | None = None  # height, width where the JSON has them

    def task(self) -> ImageTask:
        """What the doctor asks for."""
        return ImageTask(self.image_id, self.photo, self.png, self.size, self.segments)


class Records(Sequence[Record]):
    """Records by place, packed: 118 000 images of COCO take 40 MB, and 670 MB as Python objects.

    The bytes of all records are one object, so that forked workers go on sharing it: reading a Python object writes to
    its reference count, and each worker would end up with a copy of every one.
    """

    def __init__(self, rows: Iterable[Row], files: Files) -> None:
        self._files = files
        packed, starts, ids, sizes = bytearray(), array("q", [0]), array("q"), array("i")
        for row in rows:
            packed += pickle.dumps(tuple(row[:5]), pickle.HIGHEST_PROTOCOL)  # without the boxes
            starts.append(len(packed))
            ids.append(row.image_id)
            sizes.extend(row.size or (0, 0))
        self._packed, bounds = bytes(packed), np.array(starts, np.int64)
        self._starts, self._ends = bounds[:-1], bounds[1:]
        self.image_ids = np.array(ids, np.int64)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)  # height, width; 0, 0 where the JSON has none

    def by_image_id(self) -> Records:
        """The same records in rising order of the image ids; nothing is copied but the order."""
        order = np.argsort(self.image_ids, kind="stable")
        other = Records([], self._files)
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
        files = self._files
        return Record(image_id, photo, files.photo(image_id, photo), files.png(image_id, png), segments, size)


class PanopticFolder:
    """The records of one COCO panoptic JSON, in the order of its images; every photo and PNG is there, in folders or in
    shards.

    Raises InputError for what the doctor calls an error, in its words. `warnings`: lines about what is only odd.
    """

    def __init__(self, split: Split | ShardSplit | PathLike) -> None:
        """A JSON's path alone is enough where its folders are the usual ones, and the place of a shards' index is."""
        self.split = split if isinstance(split, Split | ShardSplit) else usual_split(split)
        self._report = Strict(self.split.json_file)
        chart = PanopticJson(self.split, self._report)
        self.categories = Categories(chart.categories.values())
        self.files = chart.files
        self.records = Records(chart.rows(), self.files)

    @property
    def warnings(self) -> list[str]:
        """One line a kind."""
        return self._report.warnings.lines(self.split.json_file)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, record: Record, least: Least | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Photo uint8 H x W x 3 and truth ids int32 H x W (0 = void).

        least: a JPEG of far more pixels is drafted, as `read_turned` says: it has fewer pixels than its ids then.
        InputError where one cannot be read, and where photo, PNG and JSON do not say the same.
        """
        try:
            photo_file, png_file = together(record.photo, record.png)
            photo, ids = read_turned(photo_file, least=least), read_panoptic_png(png_file)
        except InputError as error:
            raise reworded(error, f"{self.split.json_file}: image {record.image_id}: {error}") from None
        task = record.task()
        for findings in (
            check_sizes(task, photo.size[::-1], ids.shape[::-1], photo.orientation),
            check_segments(task, areas_and_boxes(ids)),
        ):
            for kind, text in findings:
                self._report(kind, text)
        return photo.pixels, ids


def check_categories(dataset: PanopticFolder, manifest: Manifest) -> None:
    """InputError naming the categories in which data set and model differ (id, name, thing or stuff)."""
    if found := differences(dataset.categories, manifest.categories_table, "the data set", "the model"):
        raise InputError(
            f"{dataset.split.json_file}: its categories are not those of the model '{manifest.name}': {found}; "
            "give the data set that the model was trained for"
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
