"""Supervisely projects, for tests: objects, files, and those of a whole panoptic truth."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.upsnet.datasets.conversion.truth import images
from upsnet.datasets.folder import PanopticFolder


def meta(folder: Path, titles: Mapping[str, str], shape: str = "any") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    classes = [
        {"id": 9000 + place, "title": title, "shape": shape, "color": color, "geometry_config": {}}
        for place, (title, color) in enumerate(titles.items())
    ]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": [], "projectType": "images"}))
    return folder


def annotate(dataset: Path, name: str, *objects: Any, width: int = 8, height: int = 6) -> Path:
    """The JSON of a photo."""
    for below in ("ann", "img"):
        (dataset / below).mkdir(parents=True, exist_ok=True)
    size = {"height": height, "width": width}
    target = dataset / "ann" / f"{name}.json"
    target.write_text(json.dumps({"description": "", "tags": [], "size": size, "objects": objects}))
    return target


def drawn(title: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"classTitle": title, "geometryType": kind, "shape": kind, "tags": []} | more


def polygon(title: str, exterior: list[Any], *interior: list[Any], **more: Any) -> dict[str, Any]:
    return drawn(title, "polygon", points={"exterior": exterior, "interior": list(interior)}, **more)


def bitmap(title: str, mask: np.ndarray, x: int, y: int, kind: str = "bitmap", **more: Any) -> dict[str, Any]:
    """As the SDK packs it: a palette whose first colour is transparent."""
    image = Image.fromarray(mask.astype(np.uint8))
    if kind == "bitmap":
        image.putpalette([0, 0, 0, 255, 255, 255])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=0)
    data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    return drawn(title, kind, bitmap={"origin": [x, y], "data": data}, **more)


def write_supervisely(truth: PanopticFolder, out: Path) -> None:
    """OUT/meta.json and the dataset OUT/val2017: a bitmap for each segment; crowds by a tag."""
    colors = {each.name: "#{:02X}{:02X}{:02X}".format(*each.color) for each in truth.categories}
    dataset = meta(out, colors, "bitmap") / "val2017"
    for photo, pieces in images(truth):
        objects = []
        for piece in pieces:
            y, x = (np.flatnonzero(piece.mask.any(axis)) for axis in (1, 0))
            window = piece.mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
            tags = [{"name": "crowd"}] * piece.iscrowd
            objects.append(bitmap(piece.name, window, int(x[0]), int(y[0]), tags=tags))
        height, width = pieces[0].mask.shape
        annotate(dataset, photo.name, *objects, width=width, height=height)
        shutil.copyfile(photo, dataset / "img" / photo.name)
