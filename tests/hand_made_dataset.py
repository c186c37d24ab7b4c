"""A hand-made data set of one photo, and the real `shapes`, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.shapes import write_shapes
from upsnet.files import write_json
from upsnet.photos import write_png

HandMade = Callable[..., dict[str, Path]]

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1, "color": [255, 0, 0]},
    {"id": 9, "name": "dog", "isthing": 1, "color": [0, 255, 0]},
    {"id": 5, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 70, "name": "sea", "isthing": 0, "color": [0, 255, 255]},
]

# Contiguous: 0 sky, 1 sea, 2 cat, 3 dog. Columns 0..7, rows 0..5.
IDS = np.array(
    [
        [7, 7, 7, 7, 7, 7, 7, 0],
        [7, 300, 300, 7, 7, 7, 7, 0],
        [7, 300, 300, 70000, 70000, 7, 7, 0],
        [7, 7, 300, 70000, 70000, 7, 16777215, 16777215],
        [8, 8, 8, 8, 8, 8, 16777215, 16777215],
        [8, 8, 8, 8, 8, 8, 8, 8],
    ],
    dtype=np.int32,
)
SEGMENTS = [
    {"id": 70000, "category_id": 9, "area": 4, "bbox": [3, 2, 2, 2], "iscrowd": 0},
    {"id": 7, "category_id": 5, "area": 18, "bbox": [0, 0, 7, 4], "iscrowd": 0},
    {"id": 300, "category_id": 3, "area": 5, "bbox": [1, 1, 2, 3], "iscrowd": 0},
    {"id": 16777215, "category_id": 3, "area": 4, "bbox": [6, 3, 2, 2], "iscrowd": 1},
    {"id": 8, "category_id": 70, "area": 14, "bbox": [0, 4, 8, 2], "iscrowd": 0},
]


def hand_made_content() -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": 42, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [{"image_id": 42, "file_name": "a.png", "segments_info": [dict(s) for s in SEGMENTS]}],
        "categories": [dict(c) for c in CATEGORIES],
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return hand_made_content()


@pytest.fixture
def hand_made(tmp_path: Path) -> HandMade:
    """Writes a data set; returns the first three arguments of PanopticDataset by name."""

    def build(
        content: dict[str, Any], ids: np.ndarray = IDS, photo: np.ndarray | None = None, name: str = "a.png"
    ) -> dict[str, Path]:
        if photo is None:
            photo = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        write_json(tmp_path / "set.json", content)
        write_png(tmp_path / "images" / name, photo)
        write_png(tmp_path / "segments" / name, id2rgb(ids))
        return {"json_file": tmp_path / "set.json", "segments": tmp_path / "segments", "images": tmp_path / "images"}

    return build


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 24, "val": 60}, progress=False)
