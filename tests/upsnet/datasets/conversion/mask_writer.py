"""A panoptic truth -> masks of classes and instances, for tests and trials of from-masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tests.folders import local
from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.folder import PanopticFolder

Kind = Literal["grey", "palette", "colors"]


def write_masks(truth: Path, out: Path, kind: Kind) -> None:
    """OUT/classes, OUT/instances, OUT/classes.csv and OUT/photos (links).

    grey: the categories' ids and a 16-bit map of instances; palette: the same ids as indices, with their colours, and
    an 8-bit map; colors: the categories' colours, and a colour for each instance. A crowd has no instance.
    """
    data = PanopticFolder(truth)
    colors = {each.id: each.color for each in data.categories}
    for record in data.records:
        _, ids = data.read(record)
        categories, numbers = np.zeros_like(ids), np.zeros_like(ids)
        for number, segment in enumerate(record.segments, 1):
            categories[ids == segment.id] = segment.category_id
            numbers[ids == segment.id] = 0 if segment.iscrowd else number
        photo = local(record.photo)
        stem = photo.stem
        for folder in ("classes", "instances", "photos"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        os.link(photo, out / "photos" / photo.name)
        classes, instances = Image.fromarray(categories.astype(np.uint8)), Image.fromarray(numbers.astype(np.uint16))
        if kind == "palette":
            classes.putpalette([channel for id in range(256) for channel in colors.get(id, (0, 0, 0))])
            instances = Image.fromarray(numbers.astype(np.uint8))
        if kind == "colors":
            lookup = np.zeros((256, 3), np.uint8)
            lookup[list(colors)] = list(colors.values())
            classes, instances = Image.fromarray(lookup[categories]), Image.fromarray(id2rgb(numbers * 70001))
        classes.save(out / "classes" / f"{stem}.png")
        instances.save(out / "instances" / f"{stem}.png")
    rows = ["id,name,isthing,value,r,g,b", "0,background,,0,0,0,0"]
    for each in data.categories:
        value = "" if kind == "colors" else each.id
        rows.append(",".join(map(str, (each.id, each.name, int(each.isthing), value, *each.color))))
    (out / "classes.csv").write_text("\n".join(rows) + "\n")
