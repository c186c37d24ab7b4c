"""What predictors are compared on: a data set with its truth, or photos alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from upsnet.categories import Categories
from upsnet.datasets.folder import PanopticFolder, Record, truth_result
from upsnet.datasets.places import File
from upsnet.datasets.segments import SegmentInfo
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.photos import read_photo
from upsnet.result import PanopticResult
from upsnet.sources import find_sources


class Truth(NamedTuple):
    """Of one photo."""

    record: Record
    ids: np.ndarray  # int32 H x W, 0 = void

    @property
    def segments(self) -> list[SegmentInfo]:
        return self.record.segments

    def as_result(self, categories: Categories) -> PanopticResult:
        return truth_result(self.record, self.ids, categories)


class Shown(NamedTuple):
    """A photo that every predictor is shown."""

    name: str  # the file's, below the folder of the photos
    photo: np.ndarray  # uint8 H x W x 3
    truth: Truth | None = None

    @property
    def image_id(self) -> int | None:
        """The data set's."""
        return None if self.truth is None else self.truth.record.image_id


class Photos(Protocol):
    """Photos in their order, read one at a time."""

    @property
    def title(self) -> str:
        """For people: the data set's JSON, or the folder."""
        ...

    @property
    def dataset(self) -> PanopticFolder | None:
        """Whose truth they have; None: they have none."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def file(self, index: int) -> File: ...

    def read(self, index: int) -> Shown:
        """InputError, which names the photo, where it cannot be read."""
        ...


class LabelledPhotos:
    """The records of a data set (default: all)."""

    def __init__(self, dataset: PanopticFolder, records: Sequence[Record] | None = None) -> None:
        self.dataset = dataset
        self.title = str(dataset.split.json_file)
        self._records = dataset.records if records is None else records

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return self._records[index].file_name

    def file(self, index: int) -> File:
        return self._records[index].photo

    def read(self, index: int) -> Shown:
        record = self._records[index]
        photo, ids = self.dataset.read(record)
        return Shown(record.file_name, photo, Truth(record, ids))


class PlainPhotos:
    """Photos without truth: of a folder and below, a pattern, or one file; at most `limit`. InputError without any."""

    dataset = None

    def __init__(self, place: PathLike, limit: int | None = None) -> None:
        self.title, self._place = str(place), Path(place)
        photos = (source.path for source in find_sources([place], warn=False) if not source.is_video)
        self._paths = list(islice(photos, limit))
        if not self._paths:
            raise InputError(f"{place}: there is no photo in it")

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        path = self._paths[index]
        return str(path.relative_to(self._place)) if self._place in path.parents else path.name

    def file(self, index: int) -> File:
        return self._paths[index]

    def read(self, index: int) -> Shown:
        return Shown(self.name(index), read_photo(self.file(index)))
