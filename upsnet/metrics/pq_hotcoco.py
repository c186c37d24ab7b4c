"""PQ of regular files by hotcoco, which decodes and scores a pair of PNGs in the time that Pillow reads half of one.

hotcoco is silent where the rules of upsnet/metrics/pq.py refuse or warn. `is_regular` finds, in the JSONs and the first
26 bytes of either PNG, the images where they would do neither. One fault it cannot see: truth whose PNG does not hold
what its JSON says. That takes the pixels, and to read them once more costs twice what hotcoco does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from upsnet import hotcoco_package
from upsnet.datasets.segments import ID_LIMIT
from upsnet.files import PathLike
from upsnet.metrics.pq import IOU_STEP, VOID, Count

PNG_START = struct.Struct(">8s 4x 4s II BB")  # signature; IHDR: width, height, bits a channel, type of colour
RGB_OR_RGBA = (2, 6)


class Pair(NamedTuple):
    """One image to score: no pixel is read yet. `image` is its name in messages."""

    image: str
    gt_png: str
    gt_segments: list[Mapping[str, Any]]
    pred_png: str
    pred_segments: list[Mapping[str, Any]]


def is_regular(pair: Pair, known: Mapping[int, bool]) -> bool:
    """Lists of integers of the right ranges, no id twice, categories that are `known`, iscrowd and area in the truth,
    which is not larger than the image, and two 8-bit RGB or RGBA files of one size."""
    try:
        gt = [(info["id"], info["category_id"], info["area"], info["iscrowd"]) for info in pair.gt_segments]
        pred = [(info["id"], info["category_id"]) for info in pair.pred_segments]
    except (KeyError, TypeError):
        return False
    if not (_are_listed(gt, known) and _are_listed(pred, known)):
        return False
    areas = [area for _, _, area, _ in gt]
    return (
        min(areas, default=1) > 0
        and {crowd for *_, crowd in gt} <= {0, 1}
        and sum(areas) <= _pixels(pair.gt_png, pair.pred_png)
    )


def _are_listed(rows: Sequence[tuple[Any, ...]], known: Mapping[int, bool]) -> bool:
    """Integers alone; each id, the first of a row, once and not void; categories, the second, of the table."""
    if not set(map(type, chain.from_iterable(rows))) <= {int}:
        return False
    ids = {row[0] for row in rows}
    in_range = min(ids, default=1) > VOID and max(ids, default=1) < ID_LIMIT
    return len(ids) == len(rows) and in_range and {row[1] for row in rows} <= known.keys()


def _pixels(*paths: str) -> int:
    """Of each file, -1 if they are not panoptic PNGs of one size."""
    try:
        sizes = {_png_size(path) for path in paths}
    except (OSError, ValueError):  # no such file; a \0 in a name
        return -1
    size = sizes.pop()
    return -1 if sizes or size is None else size[0] * size[1]


def _png_size(path: str) -> tuple[int, int] | None:
    """Width and height of a PNG of 8-bit RGB or RGBA; None for any other file. hotcoco cuts 16 bits to 8."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start = os.read(descriptor, PNG_START.size)
    finally:
        os.close(descriptor)
    if len(start) < PNG_START.size:
        return None
    signature, chunk, width, height, depth, colour = PNG_START.unpack(start)
    is_panoptic = (signature, chunk, depth) == (b"\x89PNG\r\n\x1a\n", b"IHDR", 8) and colour in RGB_OR_RGBA
    return (width, height) if is_panoptic else None


class Side(NamedTuple):
    """Truth or predictions as hotcoco takes them: a JSON, or its content, and the folder of the PNGs."""

    document: PathLike | dict[str, Any]
    folder: str


def renumbered(pairs: Sequence[Pair], known: Iterable[int]) -> tuple[Side, Side]:
    """Both sides under image ids that hotcoco takes: texts are none, and no image may come twice."""
    here = os.getcwd()
    gt, pred = (
        [
            {"image_id": index, "file_name": os.path.join(here, png), "segments_info": segments}
            for index, (png, segments) in enumerate(side)
        ]
        for side in (
            [(pair.gt_png, pair.gt_segments) for pair in pairs],
            [(pair.pred_png, pair.pred_segments) for pair in pairs],
        )
    )
    categories = [{"id": id, "name": str(id), "isthing": 1} for id in known]
    return Side({"annotations": gt, "categories": categories}, here), Side({"annotations": pred}, here)


def counts(gt: Side, pred: Side, workers: int) -> dict[int, Count] | None:
    """Category -> what it gathers. None where hotcoco refuses an image: which is first, and why, the rules say better.

    `workers` threads, unless this process has used hotcoco before.
    """
    hotcoco = hotcoco_package.load(workers)
    try:
        evaluation = hotcoco.panoptic.PanopticEval(
            gt.document, pred.document, gt_folder=gt.folder, pred_folder=pred.folder
        )
        evaluation.evaluate()
    except hotcoco_package.REFUSALS:
        return None
    gathered = {
        category: Count(figures["tp"], figures["fp"], figures["fn"], round(figures["iou"] / IOU_STEP))
        for category, figures in evaluation.results()["per_class"].items()
    }
    # An IoU above 1, from a wrong area in the truth: hotcoco counts it, like the official code.
    return gathered if all(count.iou <= count.tp + 1e-9 for count in gathered.values()) else None
