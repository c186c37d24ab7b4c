"""A data set in the COCO panoptic format, written as the labels that docs/own-data.md begins with: one folder a format.

Every format gets what it can hold exactly: outlines along the pixels' edges, masks or run lengths.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from tests.upsnet.datasets.conversion.outlines import outlines
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

    @property
    def crop(self) -> np.ndarray:
        left, top, right, bottom = self.box
        return self.mask[top:bottom, left:right]


class Photo(NamedTuple):
    path: Path
    size: tuple[int, int]  # height, width
    segments: list[Segment]


def write_labels(truth: PanopticFolder, folder: Path) -> None:
    """photos/, and beside it instances.json, masks/, yolo/, labelme/, cvat/, supervisely/."""
    photos = list(_photos(truth))
    categories = list(truth.categories)
    for place in ("photos", "labelme", "cvat/images", "yolo/images/train", "supervisely/photos/img"):
        (folder / place).mkdir(parents=True)
        for photo in photos:
            shutil.copyfile(photo.path, folder / place / photo.path.name)
    _write(folder / "instances.json", _instances(photos, categories))
    _masks(photos, categories, folder / "masks")
    _yolo(photos, categories, folder / "yolo")
    for photo in photos:
        _write(folder / "labelme" / f"{photo.path.stem}.json", _labelme(photo))
        _write(folder / "supervisely/photos/ann" / f"{photo.path.name}.json", _supervisely(photo))
    (folder / "cvat/annotations.xml").write_text(_cvat(photos, categories))
    classes = [
        {"title": each.name, "shape": "bitmap", "color": "#{:02x}{:02x}{:02x}".format(*each.color)}
        for each in categories
    ]
    _write(folder / "supervisely/meta.json", {"classes": classes, "tags": []})


def _photos(truth: PanopticFolder) -> Iterator[Photo]:
    by_id = {each.id: each for each in truth.categories}
    for record in truth.records:
        _, ids = truth.read(record)
        segments = [Segment(by_id[each.category_id], ids == each.id, each.iscrowd) for each in record.segments]
        yield Photo(record.photo, ids.shape, segments)


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of 0, 1, 0, ... in the order of a flat array."""
    changes = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
    lengths = np.diff([0, *changes.tolist(), mask.size]).tolist()
    return [0, *lengths] if mask[0] else lengths


def _instances(photos: list[Photo], categories: list[Category]) -> dict[str, Any]:
    images, annotations = [], []
    for number, photo in enumerate(photos, 1):
        height, width = photo.size
        images.append({"id": number, "file_name": photo.path.name, "height": height, "width": width})
        for each in photo.segments:
            left, top, right, bottom = each.box
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": each.category.id,
                "iscrowd": int(each.crowd), "area": int(each.mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": [height, width], "counts": _run_lengths(each.mask.T.reshape(-1))},
            })  # fmt: skip
    listed = [{"id": each.id, "name": each.name} for each in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


def _masks(photos: list[Photo], categories: list[Category], folder: Path) -> None:
    """Grey values 1, 2, ... of the classes and of the instances; a thing without a number is a crowd."""
    values = {each.id: value for value, each in enumerate(categories, 1)}
    rows = [f"{values[each.id]},{each.name},{int(each.isthing)}" for each in categories]
    for name in ("classes", "instances"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.csv").write_text("\n".join(["value,name,isthing", *rows]) + "\n")
    for photo in photos:
        classes, instances = np.zeros(photo.size, np.uint8), np.zeros(photo.size, np.uint16)
        for number, each in enumerate(photo.segments, 1):
            classes[each.mask] = values[each.category.id]
            instances[each.mask] = number if each.category.isthing and not each.crowd else 0
        Image.fromarray(classes).save(folder / "classes" / f"{photo.path.stem}.png")
        Image.fromarray(instances).save(folder / "instances" / f"{photo.path.stem}.png")


def _yolo(photos: list[Photo], categories: list[Category], folder: Path) -> None:
    """One row an outline: pieces of an instance become instances, and holes are gone."""
    places = {each.id: place for place, each in enumerate(categories)}
    names = "\n".join(f"  {place}: {json.dumps(each.name)}" for place, each in enumerate(categories))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/train\nnames:\n{names}\n")
    (folder / "labels/train").mkdir(parents=True)
    for photo in photos:
        height, width = photo.size
        rows = [
            " ".join([str(places[each.category.id]), *(f"{x / width:.9g} {y / height:.9g}" for x, y in piece.outer)])
            for each in photo.segments
            for piece in outlines(each.mask)
        ]
        (folder / f"labels/train/{photo.path.stem}.txt").write_text("\n".join(rows) + "\n")


def _labelme(photo: Photo) -> dict[str, Any]:
    shapes = []
    for each in photo.segments:
        left, top, right, bottom = each.box
        shapes.append({
            "label": each.category.name, "shape_type": "mask", "group_id": None, "flags": {},
            "points": [[left, top], [right - 1, bottom - 1]], "mask": _png(each.crop),
        })  # fmt: skip
    height, width = photo.size
    return {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": photo.path.name, "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def _png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _cvat(photos: list[Photo], categories: list[Category]) -> str:
    labels = "".join(
        f"<label><name>{each.name}</name><color>#{each.color[0]:02x}{each.color[1]:02x}{each.color[2]:02x}</color></label>"
        for each in categories
    )
    images = []
    for number, photo in enumerate(photos):
        masks = []
        for each in photo.segments:
            left, top, right, bottom = each.box
            rle = ", ".join(map(str, _run_lengths(each.crop.reshape(-1))))
            place = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
            label = quoteattr(each.category.name)
            masks.append(f'<mask label={label} occluded="0" z_order="0" rle="{rle}" {place}></mask>')
        height, width = photo.size
        attributes = f'id="{number}" name={quoteattr(photo.path.name)} width="{width}" height="{height}"'
        images.append(f"<image {attributes}>{''.join(masks)}</image>")
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"


def _supervisely(photo: Photo) -> dict[str, Any]:
    objects = []
    for each in photo.segments:
        left, top, *_ = each.box
        data = base64.b64encode(zlib.compress(base64.b64decode(_png(each.crop)))).decode()
        bitmap = {"origin": [left, top], "data": data}
        objects.append({"classTitle": each.category.name, "geometryType": "bitmap", "bitmap": bitmap, "tags": []})
    height, width = photo.size
    return {"description": "", "tags": [], "size": {"height": height, "width": width}, "objects": objects}
