"""A panoptic truth, for tests that write it in another format and convert it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from upsnet.datasets.folder import PanopticFolder


class Piece(NamedTuple):
    """A segment."""

    mask: np.ndarray  # bool H x W
    name: str  # of its category
    iscrowd: bool


def coco_truth(shared_data: Path) -> Path:
    """The official JSON of the four COCO photos."""
    return shared_data / "coco_sample" / "annotations" / "panoptic_val2017.json"


def read_truth(json_file: Path) -> Iterator[tuple[Path, list[Piece]]]:
    """Each photo with its segments."""
    data = PanopticFolder(json_file)
    names = {each.id: each.name for each in data.categories}
    for record in data.records:
        _, ids = data.read(record)
        yield record.photo, [Piece(ids == each.id, names[each.category_id], each.iscrowd) for each in record.segments]


def truth_of(json_file: Path) -> dict[str, set[tuple[str, bool, bytes]]]:
    """Photo's name -> its segments: category, whether it is a crowd, pixels. Equal for data sets of the same truth."""
    return {
        photo.name: {(piece.name, piece.iscrowd, np.packbits(piece.mask).tobytes()) for piece in pieces}
        for photo, pieces in read_truth(json_file)
    }
