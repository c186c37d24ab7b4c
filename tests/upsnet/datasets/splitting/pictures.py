"""Small data sets of pictures that all differ, for tests of the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from upsnet.datasets.coco_format import id2rgb
from upsnet.files import write_json
from upsnet.run_lengths import areas_and_boxes

CATEGORIES: list[dict[str, Any]] = [
    {"id": 10 * (n + 1), "name": name, "supercategory": "any", "isthing": int(n > 0), "color": [n, 50, 50]}
    for n, name in enumerate("abcdef")
]


def picture(seed: int, height: int = 96, width: int = 128) -> Image.Image:
    """Smooth noise: as unlike the picture of another seed as two photos are."""
    rough = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def write_pictures(
    folder: Path,
    pictures: Mapping[str, Image.Image | bytes],
    classes: Mapping[str, Sequence[int]] | None = None,
    name: str = "all",
) -> Path:
    """FOLDER/NAME.json of photos, PNG or JPEG by their names. classes: of each photo, places in CATEGORIES (default: 0,
    and 1 of every second one), in upright stripes."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, (photo, content) in enumerate(pictures.items(), 1):
        path, png = folder / name / photo, (folder / f"panoptic_{name}" / photo).with_suffix(".png")
        for parent in (path.parent, png.parent):
            parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
        with Image.open(path) as image:
            width, height = image.size
        held = classes[photo] if classes else ((0, 1) if number % 2 else (0,))
        ids = np.zeros((height, width), np.int32)
        for index, part in enumerate(np.array_split(np.arange(width), max(1, len(held)))):
            ids[:, part] = index + 1 if held else 0
        Image.fromarray(id2rgb(ids)).save(png)
        found = areas_and_boxes(ids)
        segments = [
            {
                **{"id": index, "category_id": CATEGORIES[each]["id"], "iscrowd": 0},
                **{"area": found[index][0], "bbox": list(found[index][1])},
            }
            for index, each in enumerate(held, 1)
        ]
        images.append({"id": number, "file_name": photo, "height": height, "width": width, "license": 3})
        png_name = str(Path(photo).with_suffix(".png"))
        annotations.append({"image_id": number, "file_name": png_name, "segments_info": segments})
    lists = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(folder / f"{name}.json", {"info": {"year": 2026}, "licenses": [{"id": 3}], **lists})
    return folder / f"{name}.json"
