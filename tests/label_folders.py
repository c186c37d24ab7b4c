"""A data set in the COCO panoptic format, as the labels that docs/own-data.md begins with: one folder a format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

from tests.upsnet.datasets.conversion.instances_writer import write_instances
from tests.upsnet.datasets.conversion.labelme_writer import write_labelme
from tests.upsnet.datasets.conversion.mask_writer import write_masks
from tests.upsnet.datasets.conversion.supervisely_writer import write_supervisely
from tests.upsnet.datasets.conversion.yolo_writer import write_yolo
from upsnet.categories import Category
from upsnet.datasets.folder import PanopticFolder


class Segment(NamedTuple):
    category: Category
    mask: np.ndarray  # bool H x W
    crowd: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom; the latter two are outside."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Photo(NamedTuple):
    path: Path
    size: tuple[int, int]  # height, width
    segments: list[Segment]


def write_labels(truth: PanopticFolder, folder: Path) -> None:
    """photos/ and classes.json, and beside them coco/, masks/, yolo/, labelme/, cvat/, supervisely/."""
    photos, categories = list(_photos(truth)), list(truth.categories)
    for place in ("photos", "cvat/images"):
        (folder / place).mkdir(parents=True)
        for photo in photos:
            shutil.copyfile(photo.path, folder / place / photo.path.name)
    listed = [{"id": each.id, "name": each.name, "isthing": int(each.isthing)} for each in categories]
    (folder / "classes.json").write_text(json.dumps(listed))
    write_instances(truth, folder / "coco", "polygons")
    (folder / "cvat/annotations.xml").write_text(_cvat(photos, categories))
    write_masks(truth.split.json_file, folder / "masks", "grey")
    write_yolo(truth, folder / "yolo")
    write_labelme(truth, folder / "labelme")
    write_supervisely(truth, folder / "supervisely")


def _photos(truth: PanopticFolder) -> Iterator[Photo]:
    by_id = {each.id: each for each in truth.categories}
    for record in truth.records:
        _, ids = truth.read(record)
        segments = [Segment(by_id[each.category_id], ids == each.id, each.iscrowd) for each in record.segments]
        yield Photo(record.photo, ids.shape, segments)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of 0, 1, 0, ... in the order of a flat array."""
    changes = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
    lengths = np.diff([0, *changes.tolist(), mask.size]).tolist()
    return [0, *lengths] if mask[0] else lengths


def _cvat(photos: list[Photo], categories: list[Category]) -> str:
    labels = "".join(
        f"<label><name>{each.name}</name><color>#{bytes(each.color).hex()}</color></label>" for each in categories
    )
    images = []
    for number, photo in enumerate(photos):
        masks = []
        for each in photo.segments:
            left, top, right, bottom = each.box
            crop = each.mask[top:bottom, left:right]
            rle = ", ".join(map(str, _run_lengths(crop.reshape(-1))))
            place = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
            masks.append(
                f'<mask label={quoteattr(each.category.name)} occluded="0" z_order="0" rle="{rle}" {place}></mask>'
            )
        height, width = photo.size
        attributes = f'id="{number}" name={quoteattr(photo.path.name)} width="{width}" height="{height}"'
        images.append(f"<image {attributes}>{''.join(masks)}</image>")
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
