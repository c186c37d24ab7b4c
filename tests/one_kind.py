"""A data set whose categories are all things, or all stuff: what a full one leaves when the others are void."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from upsnet.datasets.coco_format import id2rgb, read_panoptic_png
from upsnet.files import read_json, write_json
from upsnet.photos import write_png

Kind = Literal["things", "stuff"]


def keep_kind(source: Path, out: Path, kind: Kind, most: int | None = None) -> Path:
    """`shapes` in `source` -> the data set in `out`, with the first `most` categories of a kind."""
    for split in ("train", "val"):
        content = read_json(source / f"{split}.json")
        kept = [category for category in content["categories"] if category["isthing"] == (kind == "things")][:most]
        ids = {category["id"] for category in kept}
        for entry in content["annotations"]:
            entry["segments_info"] = [each for each in entry["segments_info"] if each["category_id"] in ids]
            pixels = read_panoptic_png(source / f"panoptic_{split}" / entry["file_name"])
            there = np.isin(pixels, [segment["id"] for segment in entry["segments_info"]])
            write_png(out / f"panoptic_{split}" / entry["file_name"], id2rgb(np.where(there, pixels, 0)))
        write_json(out / f"{split}.json", content | {"categories": kept})
        (out / split).symlink_to(source / split)
    return out
