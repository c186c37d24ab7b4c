"""Labelme's JSONs, for tests: shapes, files, and those of a whole panoptic truth."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.upsnet.datasets.conversion.outlines import outlines
from tests.upsnet.datasets.conversion.truth import images
from upsnet.datasets.folder import PanopticFolder


def shape(label: str, points: list[Any], kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def png(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def label(path: Path, *shapes: Any, **more: Any) -> Path:
    """A JSON, of a photo of 8 x 6 pixels with its name unless `more` says another."""
    content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{path.stem}.jpg"}
    content |= {"imageData": None, "imageHeight": 6, "imageWidth": 8}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | more))
    return path


def write_labelme(truth: PanopticFolder, out: Path) -> None:
    """OUT/NAME.json beside OUT/NAME.jpg: polygons where a segment has no hole, else masks; parts by group_id, crowds by
    a flag."""
    for photo, pieces in images(truth):
        drawn: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            about: dict[str, Any] = {"group_id": number, "flags": {"crowd": piece.iscrowd}}
            parts = outlines(piece.mask)
            if any(part.holes for part in parts):
                y, x = (np.flatnonzero(piece.mask.any(axis)) for axis in (1, 0))
                corners = [[int(x[0]), int(y[0])], [int(x[-1]), int(y[-1])]]
                window = png(piece.mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1])
                drawn.append(shape(piece.name, corners, "mask", mask=window, **about))
            else:
                drawn += [shape(piece.name, [list(point) for point in part.outer], **about) for part in parts]
        height, width = pieces[0].mask.shape
        label(out / f"{photo.stem}.json", *drawn, imagePath=photo.name, imageHeight=height, imageWidth=width)
        shutil.copyfile(photo, out / photo.name)
