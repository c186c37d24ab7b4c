"""The official truth of the four COCO photos, for tests that write it in another format and convert it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.folders import local
from upsnet.datasets.conversion.convert import convert
from upsnet.datasets.conversion.labels import Source
from upsnet.datasets.conversion.table import Choice
from upsnet.datasets.folder import PanopticFolder


class Piece(NamedTuple):
    """A segment of the truth."""

    mask: np.ndarray  # bool H x W
    name: str  # of its category
    isthing: bool
    iscrowd: bool


class Truth:
    def __init__(self, shared_data: Path) -> None:
        self.json_file = shared_data / "coco_sample" / "annotations" / "panoptic_val2017.json"
        self.data = PanopticFolder(self.json_file)

    def images(self) -> Iterator[tuple[Path, list[Piece]]]:
        """Each photo with its segments."""
        return images(self.data)


def images(data: PanopticFolder) -> Iterator[tuple[Path, list[Piece]]]:
    """Each photo with its segments."""
    categories = {each.id: each for each in data.categories}
    for record in data.records:
        _, ids = data.read(record)
        of = [(segment, categories[segment.category_id]) for segment in record.segments]
        yield (
            local(record.photo),
            [Piece(ids == segment.id, each.name, each.isthing, segment.iscrowd) for segment, each in of],
        )


def pixels(data: PanopticFolder, crowds: bool = True) -> dict[str, set[tuple[str, bool, bytes]]]:
    """Photo's name -> its segments: category, whether it is a crowd (crowds=False: never), mask. Equal for data sets
    that hold the same panoptic truth."""
    return {
        photo.name: {(each.name, crowds and each.iscrowd, np.packbits(each.mask).tobytes()) for each in pieces}
        for photo, pieces in images(data)
    }


def check_comes_back(source: Source, truth: Truth, out: Path) -> None:
    """A source that holds the whole truth but for what is stuff: every pixel, crowd, name and colour comes back."""
    categories = truth.data.categories
    stuff = [each.name for each in categories if not each.isthing]
    (made,) = convert(source, out, Choice(stuff=stuff), progress=False)
    assert not made.checkup.tally.errors and made.contested == 0 and not made.lost
    assert pixels(PanopticFolder(made.split)) == pixels(truth.data)
    assert [(each.name, each.color) for each in made.table.categories] == [
        (each.name, each.color) for each in categories
    ]
