"""CVAT's XML, for tests: elements, files, and those of a whole panoptic truth."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from tests.upsnet.datasets.conversion.outlines import outlines
from tests.upsnet.datasets.conversion.truth import Piece, images
from upsnet.datasets.folder import PanopticFolder

LABELS = {"cat": "#0a0b0c", "dog": "#ff0000"}


def element(tag: str, /, *inside: str, **attributes: object) -> str:
    given = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{tag}{given}>\n{''.join(inside)}</{tag}>\n"


def attribute(name: str, value: str) -> str:
    return f"  <attribute name={quoteattr(name)}>{escape(value)}</attribute>\n"


def label(name: str, color: str = "", kind: str = "any", more: str = "") -> str:
    """Of <meta>."""
    return (
        f"<label><name>{escape(name)}</name><color>{color}</color><type>{kind}</type><attributes></attributes>"
        f"{more}</label>\n"
    )


def document(*inside: str, labels: Iterable[str] = (), more_meta: str = "") -> str:
    """The whole file, with the labels LABELS."""
    listed = "".join(labels) or "".join(label(name, color) for name, color in LABELS.items())
    meta = f"<meta>\n<task><name>a task</name><labels>\n{listed}</labels>{more_meta}</task>\n</meta>\n"
    declaration = '<?xml version="1.0" encoding="utf-8"?>\n'
    return f"{declaration}<annotations>\n<version>1.1</version>\n{meta}{''.join(inside)}</annotations>\n"


def image(name: str, *inside: str, width: int = 8, height: int = 6, **more: object) -> str:
    return element("image", *inside, id=0, name=name, **more, width=width, height=height)


def polygon(name: str, *points: tuple[float, float], **more: object) -> str:
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return element("polygon", label=name, source="manual", occluded=0, points=text, **({"z_order": 0} | more))


def square(name: str, x1: float, y1: float, x2: float, y2: float, **more: object) -> str:
    return polygon(name, (x1, y1), (x2, y1), (x2, y2), (x1, y2), **more)


def mask(name: str, pixels: np.ndarray, x: int, y: int, *inside: str, **more: object) -> str:
    flat = np.concatenate([[False], pixels.astype(bool).reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff([0, *changes, pixels.size])
    place = {"left": x, "top": y, "width": pixels.shape[1], "height": pixels.shape[0]}
    rle = ", ".join(map(str, runs.tolist()))
    return element(
        "mask", *inside, label=name, source="manual", occluded=0, rle=rle, **place, **({"z_order": 0} | more)
    )


def write_cvat(truth: PanopticFolder, out: Path, kind: Literal["mask", "polygon"] = "mask", only: str = "") -> None:
    """OUT/annotations.xml and OUT/images: a mask for each segment, or polygons without the holes, grouped; a crowd by
    its attribute. only: part of the photos' names."""
    (out / "images").mkdir(parents=True)
    parts = []
    for number, (photo, pieces) in enumerate(images(truth)):
        if only not in photo.name:
            continue
        height, width = pieces[0].mask.shape
        shapes = [_shapes(piece, kind, group) for group, piece in enumerate(pieces, 1)]
        parts.append(element("image", *shapes, id=number, name=photo.name, width=width, height=height))
        shutil.copyfile(photo, out / "images" / photo.name)
    labels = [label(each.name, "#{:02x}{:02x}{:02x}".format(*each.color)) for each in truth.categories]
    (out / "annotations.xml").write_text(document(*parts, labels=labels), encoding="utf-8")


def _shapes(piece: Piece, kind: str, group: int) -> str:
    inside = attribute("is_crowd", "true") if piece.iscrowd else ""
    if kind == "polygon":
        rings = [outline.outer for outline in outlines(piece.mask)]
        points = [";".join(f"{x:.2f},{y:.2f}" for x, y in ring) for ring in rings]
        given = {"label": piece.name, "occluded": 0, "z_order": 0, "group_id": group}
        return "".join(element("polygon", inside, **given, points=each) for each in points)
    y, x = (np.flatnonzero(piece.mask.any(axis)) for axis in (1, 0))
    return mask(piece.name, piece.mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1], int(x[0]), int(y[0]), inside)
