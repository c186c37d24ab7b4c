"""A data set of made-up photos in the COCO panoptic format, to measure loaders and training steps without a download.

Nothing can be learned from it. It costs what real data costs: JPEG photos of COCO's size and weight, and PNGs of about
20 segments with crooked borders, a third of them stuff in the back, the rest things of all sizes before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from upsnet.datasets.coco_format import id2rgb
from upsnet.datasets.split import Split
from upsnet.errors import InputError
from upsnet.files import write_json
from upsnet.photos import write_png
from upsnet.run_lengths import areas_and_boxes

STUFF, THINGS = 53, 80  # COCO's categories
LEAST_SIDE = 32
STUFF_SEGMENTS, THING_SEGMENTS = 7, 14  # of an image, before some are covered wholly
LEAST_PIXELS = 16  # of a segment


def write_panoptic_set(folder: Path, images: int, photo: tuple[int, int], seed: int = 0) -> Split:
    """Write `images` photos of `photo` (height, width) pixels, every third one turned, and their truth into `folder`.

    The categories are as many as COCO's. InputError for photos that are too small, or none.
    """
    if min(photo) < LEAST_SIDE or images < 1:
        raise InputError(
            f"synthetic data: {images} photos of {photo[1]} x {photo[0]} pixels; give one at least, and sides from "
            f"{LEAST_SIDE} pixels"
        )
    categories = [{"id": i + 1, "name": f"thing {i + 1}", "isthing": 1} for i in range(THINGS)]
    categories += [{"id": THINGS + i + 1, "name": f"stuff {i + 1}", "isthing": 0} for i in range(STUFF)]
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(images), desc="synthetic data", unit="image", disable=None):
        draws = np.random.default_rng([seed, index])
        height, width = photo[::-1] if index % 3 == 2 else photo
        rows = draw_segments(draws, height, width)
        # An image has a stuff class once at most.
        stuff, things = draws.permutation(STUFF)[:STUFF_SEGMENTS] + THINGS, draws.integers(THINGS, size=THING_SEGMENTS)
        categories_of = [*stuff.tolist(), *things.tolist()]
        segments = [
            {"id": segment_id(row), "category_id": categories_of[row] + 1, "iscrowd": 0, "area": area, "bbox": box}
            for row, (area, box) in areas_and_boxes(rows).items()
        ]
        stem = f"{index + 1:012d}"
        Image.fromarray(draw_photo(draws, rows)).save(folder / "images" / f"{stem}.jpg", quality=90)
        write_png(folder / "segments" / f"{stem}.png", id2rgb(segment_id(rows)))
        entries.append({"id": index + 1, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations.append({"image_id": index + 1, "file_name": f"{stem}.png", "segments_info": segments})
    content = {"images": entries, "annotations": annotations, "categories": categories}
    write_json(folder / "panoptic.json", content)
    return Split(json_file=folder / "panoptic.json", segments=folder / "segments", images=folder / "images")


def segment_id(rows: Any) -> Any:  # Any: an int, or an array of them
    """The id of a row, or of a map of them: all three bytes of the colour are used."""
    return rows * 70_001 + 1


def draw_segments(draws: np.random.Generator, height: int, width: int) -> np.ndarray:
    """int64 H x W: 0 .. STUFF_SEGMENTS - 1 the back's regions, from there on things, the later ones in front.

    Things are ellipses with half axes of 3 % to 30 % of the short side, on coordinates bent by smooth noise. Segments
    of fewer than LEAST_PIXELS pixels become part of the largest one.
    """
    bend = 0.06 * min(height, width)
    y = np.arange(height)[:, None] + bend * smooth_noise(draws, height, width)
    x = np.arange(width) + bend * smooth_noise(draws, height, width)
    centres = draws.uniform(0, 1, (STUFF_SEGMENTS, 2)) * (height, width)
    back = np.stack([(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centres]).argmin(0)
    rows = back.copy()
    for thing in range(STUFF_SEGMENTS, STUFF_SEGMENTS + THING_SEGMENTS):
        cy, cx = draws.uniform(0, 1, 2) * (height, width)
        ry, rx = min(height, width) * 0.03 * 10 ** draws.uniform(0, 1, 2)
        rows[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = thing
    tiny = np.flatnonzero(np.bincount(rows.ravel()) < LEAST_PIXELS)
    return np.where(np.isin(rows, tiny), np.bincount(rows.ravel()).argmax(), rows)


def draw_photo(draws: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """uint8 H x W x 3: a colour for each segment, shading and fine noise, so that a JPEG has something to do."""
    height, width = rows.shape
    colours = draws.uniform(40, 215, (STUFF_SEGMENTS + THING_SEGMENTS, 3))
    shade = 25 * smooth_noise(draws, height, width)[..., None]
    return (colours[rows] + shade + draws.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def smooth_noise(draws: np.random.Generator, height: int, width: int, cells: int = 8) -> np.ndarray:
    """float32 H x W of about unit deviation, from `cells` x `cells` numbers."""
    coarse = Image.fromarray(draws.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
