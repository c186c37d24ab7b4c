"""The official evaluation of AP, and a small data set to score."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.datasets.coco_format import id2rgb
from upsnet.photos import write_png

PERSON, SKY = 1, 187
IDS = np.repeat([1, 2], [40, 60]).astype(np.int32).reshape(10, 10)


def official_ap(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """pycocotools' first six figures. For masks without the boxes of the results, as detectron2 and the COCO server do:
    areas then come from the masks."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        given = [{key: row[key] for key in row if (kind, key) != ("segm", "bbox")} for row in results]
        evaluation = COCOeval(coco, coco.loadRes(given), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


def write_side(folder: Path, file_names: dict[int, str], stuff: int = SKY) -> list[dict[str, Any]]:
    """Maps of 10 x 10 pixels, 40 of a person and 60 of `stuff`; -> the annotations of truth or predictions."""
    for file_name in file_names.values():
        write_png(folder / file_name, id2rgb(IDS))
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "segments_info": [
                {"id": 1, "category_id": PERSON, "iscrowd": 0, "area": 40},
                {"id": 2, "category_id": stuff, "iscrowd": 0, "area": 60},
            ],
        }
        for image_id, file_name in file_names.items()
    ]
