"""A panoptic truth -> YOLO segmentation text files, for tests: outlines along the pixels' edges, in one ring each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.folders import local
from tests.upsnet.datasets.conversion.outlines import Ring, outlines
from upsnet.datasets.folder import PanopticFolder


def bridged(mask: np.ndarray) -> Ring:
    """All parts of a mask and their holes as one ring: from its first point to each other part, around it, and back."""
    rings = [ring for outline in outlines(mask) for ring in (outline.outer, *outline.holes)]
    start = rings[0][0]
    return [*rings[0], start, *(point for ring in rings[1:] for point in (*ring, ring[0], start))]


def row(number: int, ring: Ring, size: tuple[int, int]) -> str:
    """size: height, width."""
    return " ".join([str(number), *(f"{x / size[1]!r} {y / size[0]!r}" for x, y in ring)])


def write_yolo(truth: PanopticFolder, root: Path, split: str = "train") -> Path:
    """root/data.yaml, images/SPLIT/*.jpg, labels/SPLIT/*.txt. Classes are numbered in the truth's contiguous order."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    numbers = {each.id: number for number, each in enumerate(truth.categories)}
    for record in truth.records:
        _, ids = truth.read(record)
        rows = [row(numbers[each.category_id], bridged(ids == each.id), ids.shape) for each in record.segments]
        (root / "labels" / split / f"{local(record.photo).stem}.txt").write_text("\n".join(rows) + "\n")
        shutil.copy(local(record.photo), root / "images" / split)
    names = "".join(f"  {numbers[each.id]}: {each.name}\n" for each in truth.categories)
    (root / "data.yaml").write_text(f"path: .\n{split}: images/{split}\nnames:\n{names}")
    return root / "data.yaml"
