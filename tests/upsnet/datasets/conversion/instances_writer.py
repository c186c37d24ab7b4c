"""A panoptic truth -> a COCO instances JSON and maps of stuff, for tests and trials of from-instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np
from PIL import Image

from tests.folders import local
from tests.upsnet.datasets.conversion.outlines import outlines
from upsnet.datasets.folder import PanopticFolder

Kind = Literal["polygons", "compressed", "plain"]


def write_instances(truth: PanopticFolder, out: Path, kind: Kind) -> None:
    """OUT/instances.json, OUT/stuff/*.png (values: category ids) and OUT/stuff.csv. Crowds are plain run lengths.

    polygons: along the pixels' edges, one for each piece of an object. A piece with holes is written as run lengths, as
    the list of polygons has no holes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    things = {each.id for each in truth.categories if each.isthing}
    (out / "stuff").mkdir(parents=True)
    for record in truth.records:
        _, ids = truth.read(record)
        height, width = ids.shape
        images.append({"id": record.image_id, "file_name": record.file_name, "height": height, "width": width})
        stuff = np.zeros(ids.shape, np.uint8)
        for segment in record.segments:
            mask = ids == segment.id
            if segment.category_id not in things:
                stuff[mask] = segment.category_id
                continue
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": record.image_id, "category_id": segment.category_id},
                    **{"iscrowd": int(segment.iscrowd), "area": int(mask.sum())},
                    "segmentation": encode(mask, "plain" if segment.iscrowd else kind),
                }
            )
        Image.fromarray(stuff).save(out / "stuff" / f"{local(record.photo).stem}.png")
    categories = [{"id": each.id, "name": each.name, "supercategory": "x"} for each in truth.categories if each.isthing]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "instances.json").write_text(json.dumps(content))
    rows = [f"{each.id},{each.name},{int(each.isthing)}" for each in truth.categories]
    (out / "stuff.csv").write_text("\n".join(["id,name,isthing", *rows]) + "\n")


def encode(mask: np.ndarray, kind: Kind) -> object:
    if kind == "polygons":
        pieces = outlines(mask)
        if not any(piece.holes for piece in pieces):
            return [[value for point in piece.outer for value in point] for piece in pieces]
    if kind == "plain":
        flat = np.concatenate([[False], mask.T.ravel(), [False]])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0, append=mask.size).tolist()}
    code = hotcoco.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}
