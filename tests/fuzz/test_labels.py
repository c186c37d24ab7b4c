"""Labels of other formats as tools, scripts and accidents leave them: what is converted, the doctor finds sound."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.mutations import damaged, dump, fuzzed, mutated, refused
from upsnet.datasets.conversion import cvat, instances, labelme, masks, supervisely, yolo
from upsnet.datasets.conversion.convert import Rules, convert
from upsnet.datasets.conversion.labels import Source
from upsnet.datasets.doctor.check import check_split

SIDE = 16
RING = [[2, 2], [9, 2], [9, 8], [2, 8]]
FLAT = [value for point in RING for value in point]


def encoded_mask(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width), 255, np.uint8)).convert("1").save(stream, "PNG")
    return stream.getvalue()


BITMAP = base64.b64encode(encoded_mask(4, 3)).decode()
PACKED = base64.b64encode(zlib.compress(encoded_mask(4, 3))).decode()

INSTANCES = {
    "images": [{"id": 5, "file_name": "a.png", "width": SIDE, "height": SIDE}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 1, "segmentation": [FLAT], "area": 42, "iscrowd": 0},
        {
            **{"id": 2, "image_id": 5, "category_id": 2, "area": 56, "iscrowd": 1},
            "segmentation": {"counts": [200, 56], "size": [SIDE, SIDE]},
        },
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog", "color": [1, 2, 3]}],
}
LABELME: dict[str, Any] = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {"label": "cat", "points": RING, "group_id": None, "shape_type": "polygon", "flags": {}},
        {"label": "dog", "points": [[4, 4], [8, 4]], "group_id": 1, "shape_type": "circle", "flags": {}},
        {"label": "dog", "points": [[3, 3], [6, 5]], "group_id": 2, "shape_type": "mask", "mask": BITMAP},
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": SIDE,
    "imageWidth": SIDE,
}
META = {
    "classes": [
        {"title": "cat", "shape": "polygon", "color": "#FF0000"},
        {"title": "dog", "shape": "bitmap", "color": "#00FF00"},
    ],
    "tags": [],
}
SUPERVISELY = {
    "size": {"height": SIDE, "width": SIDE},
    "tags": [],
    "objects": [
        {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": RING, "interior": [RING]}, "tags": []},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": PACKED, "origin": [3, 4]}, "tags": []},
    ],
}
CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels>
    <label><name>cat</name><color>#fa3253</color><attributes></attributes></label>
    <label><name>dog</name><color>#3399ff</color><attributes></attributes></label>
  </labels></task></meta>
  <image id="0" name="a.png" width="{SIDE}" height="{SIDE}">
    <polygon label="cat" source="manual" occluded="0" points="2,2;9,2;9,8;2,8" z_order="0"></polygon>
    <mask label="dog" occluded="0" rle="3, 2, 1" left="3" top="4" width="3" height="2" z_order="1"></mask>
    <ellipse label="dog" occluded="0" cx="8" cy="8" rx="3" ry="2" z_order="0"></ellipse>
  </image>
</annotations>
""".encode()
YAML = b"path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n"
ROWS = b"0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5\n1 0.5 0.5 0.9 0.5 0.9 0.9\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and labels of every format; each target writes its own file anew."""
    folder = tmp_path_factory.mktemp("labels")
    photo = Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3))
    for place in ("photos", "labelme", "yolo/images/train", "supervisely/train/img"):
        (folder / place).mkdir(parents=True)
        photo.save(folder / place / "a.png")
    for place in ("yolo/labels/train", "supervisely/train/ann", "masks"):
        (folder / place).mkdir(parents=True)
    (folder / "yolo/data.yaml").write_bytes(YAML)
    (folder / "yolo/labels/train/a.txt").write_bytes(ROWS)
    (folder / "supervisely/meta.json").write_text(json.dumps(META))
    (folder / "classes.json").write_text(json.dumps([{"id": 1, "name": "road", "isthing": 0}]))
    return folder


def converts(folder: Path, read: Callable[[], Source], name: str) -> bool:
    """What the reader takes is converted or refused; what is converted the doctor finds no error in."""
    out, made = folder / "out", []
    shutil.rmtree(out, ignore_errors=True)
    with refused(name):
        made = convert(read(), out, rules=Rules(boxes="crowd", workers=1), progress=False)
    for each in made:
        assert not check_split(each.split, 1, progress=False).tally.errors, each.split
    assert made or not list(folder.glob("out/*"))
    return bool(made)


def read_instances(folder: Path) -> Source:
    return instances.read(folder / "instances.json", folder / "photos")


JSONS: dict[str, tuple[str, Any, Callable[[Path], Source]]] = {
    "instances": ("instances.json", INSTANCES, read_instances),
    "labelme": ("labelme/a.json", LABELME, lambda folder: labelme.read(folder / "labelme")),
    "supervisely": (
        *("supervisely/train/ann/a.png.json", SUPERVISELY),
        lambda folder: supervisely.read(folder / "supervisely"),
    ),
    "supervisely's meta": (
        *("supervisely/meta.json", META),
        lambda folder: supervisely.read(folder / "supervisely"),
    ),
}
FILES: dict[str, tuple[str, bytes, Callable[[Path], Source]]] = {
    "yolo": ("yolo/labels/train/a.txt", ROWS, lambda folder: yolo.read(folder / "yolo/data.yaml")),
    "yolo's yaml": ("yolo/data.yaml", YAML, lambda folder: yolo.read(folder / "yolo/data.yaml")),
    "cvat": ("annotations.xml", CVAT, lambda folder: cvat.read(folder / "annotations.xml", folder / "photos")),
}


@pytest.mark.parametrize("format", JSONS)
@fuzzed(40)
@given(st.data())
def test_values(folder: Path, format: str, data: st.DataObject) -> None:
    name, document, read = JSONS[format]
    path = folder / name
    good = json.dumps(document)
    path.write_text(dump(data.draw(mutated(document))))
    try:
        converts(folder, lambda: read(folder), str(folder))
    finally:
        path.write_text(good)


@pytest.mark.parametrize("format", [*JSONS, *FILES])
@fuzzed(30)
@given(st.data())
def test_bytes(folder: Path, format: str, data: st.DataObject) -> None:
    name, document, read = {**JSONS, **FILES}[format]
    path = folder / name
    good = document if isinstance(document, bytes) else json.dumps(document).encode()
    path.write_bytes(data.draw(damaged(good)))
    try:
        converts(folder, lambda: read(folder), str(folder))
    finally:
        path.write_bytes(good)


@fuzzed(30)
@given(st.data())
def test_masks(folder: Path, data: st.DataObject) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(stream, "PNG")
    (folder / "masks/a.png").write_bytes(data.draw(damaged(stream.getvalue())))
    converts(
        folder,
        lambda: masks.read(folder / "masks", folder / "photos", classes=folder / "classes.json"),
        str(folder),
    )


@pytest.mark.parametrize("format", [*JSONS, *FILES])
def test_the_good_ones_are_converted(folder: Path, format: str) -> None:
    name, document, read = {**JSONS, **FILES}[format]
    (folder / name).write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    assert converts(folder, lambda: read(folder), str(folder))
