"""Panoptic quality of a prediction folder in the official COCO panoptic format, equal to the official panopticapi.

    report = evaluate("val.json", "predictions.json")

Two roads give one answer. Where every image is regular, hotcoco reads the files (upsnet/metrics/pq_hotcoco.py). Where
the rules of upsnet/metrics/pq.py may have something to refuse or to warn of, or hotcoco is not installed, Pillow reads
the PNGs and the rules score them, one image after the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from upsnet import hotcoco_package
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.datasets.listing import Listing
from upsnet.datasets.parallel import chunked, map_parallel
from upsnet.datasets.split import Split
from upsnet.datasets.wrong_file import PANOPTIC, other_format
from upsnet.errors import InputError
from upsnet.files import PathLike, read_json
from upsnet.json_values import complaint, whole
from upsnet.metrics.pq import PQStat, things_by_id, truth_warnings
from upsnet.metrics.pq_hotcoco import Pair, Side, counts, is_regular, renumbered

CHUNK = 16  # images that a process scores at a time
CHECKED, CHECKED_SHARE = 8, 100  # truth PNGs that are compared with their JSON: so many, or one in so many


def evaluate(
    gt_json: PathLike,
    pred_json: PathLike,
    gt_folder: PathLike | None = None,
    pred_folder: PathLike | None = None,
    workers: int = 1,
    check_all: bool = False,
) -> dict[str, Any]:
    """PQ of the predictions that `pred_json` describes. Folders of PNGs: by default the JSON's path without .json; of
    the truth X.json panoptic_X beside it, where that is there: X has the photos then.

    -> {"results": {"All" | "Things" | "Stuff": pq, sq, rq, n}, "per_class": {category id: pq, sq, rq, tp, fp, fn, iou},
    "images": count, "truth_checked": count, "warnings": [lines that name the image]}, in fractions; pq, sq, rq are None
    where n is 0.
    `workers` cores read the images one by one; the figures do not depend on their number. Raises InputError.

    Predictions are checked in every image, and so is what the truth's JSON says. Whether the truth's PNGs hold the ids
    and areas of its JSON is looked up in 8 images or a hundredth of them, spread evenly; check_all: in all, which takes
    three times as long. Where they do not, the figures are the official ones all the same.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    usual = Split.usual(Path(gt_json)).segments
    gt = _read(gt_json, gt_folder or (usual if usual.is_dir() else None))
    pred = _read(pred_json, pred_folder)
    if "categories" not in gt.content:
        raise InputError(f"{gt_json}: key 'categories' is missing")
    try:
        isthing = things_by_id(gt.content["categories"])
    except InputError as error:
        raise InputError(f"{gt_json}: {error}") from error
    stat = PQStat()
    pairs = _pairs(gt, pred, stat.warnings)
    gathered = None
    if hotcoco_package.is_installed() and all(is_regular(pair, isthing) for pair in pairs):
        sides = Side(gt.path, gt.folder), Side(pred.path, pred.folder)
        if not (_are_plain_ids(gt.annotations) and _are_plain_ids(pred.annotations)):
            sides = renumbered(pairs, isthing)
        gathered = counts(*sides, workers)
    if gathered is None:
        _score_all(pairs, isthing, workers, stat)
        checked = len(pairs)
    else:
        checked = len(pairs) if check_all else min(len(pairs), max(CHECKED, len(pairs) // CHECKED_SHARE))
        stat.counts.update(gathered)
        stat.images = len(pairs)
        stat.warnings += _truth_warnings(pairs, checked)
    figures = stat.results(gt.content["categories"])
    return {**figures, "images": stat.images, "truth_checked": checked, "warnings": stat.warnings}


class Document(NamedTuple):
    """Truth or predictions: a JSON that was read, and the folder of its PNGs."""

    path: PathLike
    folder: str
    content: dict[str, Any]
    annotations: list[dict[str, Any]]  # each with an image_id (int or text), a file_name and a segments_info list


def _read(path: PathLike, folder: PathLike | None) -> Document:
    content = read_json(path)
    if other := other_format(content):
        raise InputError(f"{path}: {other}")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with 'annotations', got a {type(content).__name__}; {PANOPTIC}")
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise InputError(f"{path}: key 'annotations' is missing or not a list")
    for index, annotation in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(annotation, dict):
            raise InputError(f"{where}: expected an object, got a {type(annotation).__name__}")
        image_id = annotation.get("image_id")
        if not isinstance(image_id, str):
            image_id = whole(image_id)
            if image_id is None:
                raise InputError(f"{where}: {complaint(annotation, 'image_id', 'an integer or a text')}")
            annotation["image_id"] = image_id
        for key, kind, wanted in (("file_name", str, "a text"), ("segments_info", list, "a list")):
            if not isinstance(annotation.get(key), kind):
                raise InputError(f"{where}: image {image_id}: {complaint(annotation, key, wanted)}")
    return Document(path, os.fspath(folder or Path(path).with_suffix("")), content, annotations)


def _pairs(gt: Document, pred: Document, warnings: list[str]) -> list[Pair]:
    """Pair by image_id. Of two predictions for one image the last counts, as in panopticapi."""
    predictions: dict[int | str, dict[str, Any]] = {}
    for annotation in pred.annotations:
        if annotation["image_id"] in predictions:
            warnings.append(f"image {annotation['image_id']}: predicted more than once; the last entry counts")
        predictions[annotation["image_id"]] = annotation
    pairs: list[Pair] = []
    seen: set[int | str] = set()
    for annotation in gt.annotations:
        image_id = annotation["image_id"]
        if image_id not in predictions:
            raise InputError(f"image {image_id}: no prediction in {pred.path}{_id_type_hint(image_id, predictions)}")
        if image_id in seen:
            warnings.append(f"image {image_id}: more than one ground truth; each counts")
        seen.add(image_id)
        pairs.append(
            Pair(
                f"{image_id} ({annotation['file_name']})",
                os.path.join(gt.folder, annotation["file_name"]),
                annotation["segments_info"],
                os.path.join(pred.folder, predictions[image_id]["file_name"]),
                predictions[image_id]["segments_info"],
            )
        )
    extra = [image_id for image_id in predictions if image_id not in seen]
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        warnings.append(f"image {extra[0]}{more}: predicted, but not in the ground truth; ignored")
    return pairs


def _id_type_hint(image_id: int | str, predictions: Mapping[int | str, object]) -> str:
    twins = [other for other in predictions if str(other) == str(image_id)]
    return f" (it has {twins[0]!r}, which is another type than {image_id!r})" if twins else ""


def _check_categories(pair: Pair, isthing: Mapping[int, bool], warnings: list[str]) -> None:
    """Categories outside the ground truth's table: refused in a prediction, left out with a warning otherwise."""
    for side, segments in (("prediction", pair.pred_segments), ("ground truth", pair.gt_segments)):
        for segment in segments:
            # Other types, and a missing key, are for PQStat to refuse.
            category = segment.get("category_id") if isinstance(segment, dict) else None
            if not isinstance(category, int | float) or category in isthing:
                continue
            what = f"image {pair.image}: {side}: segment {segment.get('id')} has the unknown category_id {category}"
            if side == "prediction":
                raise InputError(f"{what}; predictions must carry the ground truth's category ids")
            warnings.append(f"{what}; it is left out of every average, as in panopticapi")


def _are_plain_ids(annotations: list[dict[str, Any]]) -> bool:
    """Can hotcoco read the file itself: image ids are numbers, each of them once."""
    ids = [annotation["image_id"] for annotation in annotations]
    return set(map(type, ids)) <= {int} and min(ids, default=0) >= 0 and len(set(ids)) == len(ids)


def _truth_warnings(pairs: Sequence[Pair], count: int) -> Iterator[str]:
    """Quirks in the truth of regular images. Whether PNG and JSON say the same is looked up in `count` of them."""
    checked = {place * len(pairs) // count for place in range(count)}
    for place, pair in enumerate(pairs):
        if place in checked:
            ids = _read_ids(pair.gt_png, f"image {pair.image}: ground truth")
            yield from truth_warnings(pair.gt_segments, pair.image, ids)
        elif sum(info["iscrowd"] for info in pair.gt_segments) > 1:
            yield from truth_warnings(pair.gt_segments, pair.image)


def _score_all(pairs: Sequence[Pair], isthing: Mapping[int, bool], workers: int, stat: PQStat) -> None:
    """Every image by the rules, added to `stat`."""
    for pair in pairs:
        _check_categories(pair, isthing, stat.warnings)
    with tqdm(desc="PQ", total=len(pairs), unit="image", disable=None) as progress:
        # What travels between processes is short lists and small sums.
        for part in map_parallel(_score, chunked(pairs, CHUNK), workers):
            stat += part
            progress.update(part.images)


def _score(pairs: Sequence[Pair]) -> PQStat:
    stat = PQStat()
    for pair in pairs:
        gt_ids = _read_ids(pair.gt_png, f"image {pair.image}: ground truth")
        pred_ids = _read_ids(pair.pred_png, f"image {pair.image}: prediction")
        stat.accumulate(gt_ids, pair.gt_segments, pred_ids, pair.pred_segments, pair.image)
    return stat


def _read_ids(path: str, where: str) -> np.ndarray:
    try:
        return read_panoptic_png(path)
    except InputError as error:
        hint = "" if os.path.exists(path) else Listing(Path()).hint(path)
        raise InputError(f"{where}: {error}{hint}") from error
