"""Panoptic quality of a prediction folder in the official COCO panoptic format, equal to the official panopticapi.

    python upsnet/metrics/pq_files.py --gt-json val.json --pred-json predictions.json --json pq.json

Exit code 2, and one line on stderr that names the image and the cause, where the input must be refused. Official
quirks that touch the figures are warnings on stderr. The rules themselves are in upsnet/metrics/pq.py.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError
from upsnet.files import PathLike, read_json
from upsnet.metrics.pq import PQStat, things_by_id

CHUNK = 16  # images that a process scores at a time


class _Pair(NamedTuple):
    """One image to score: nothing is read yet. `image` is its name in messages."""

    image: str
    gt_png: Path
    gt_segments: list[Mapping[str, Any]]
    pred_png: Path
    pred_segments: list[Mapping[str, Any]]


def evaluate(
    gt_json: PathLike,
    pred_json: PathLike,
    gt_folder: PathLike | None = None,
    pred_folder: PathLike | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """PQ of the predictions that `pred_json` describes. Folders of PNGs: by default the JSON's path without .json.

    -> {"results": {"All" | "Things" | "Stuff": pq, sq, rq, n}, "per_class": {category id: pq, sq, rq, tp, fp, fn, iou},
    "images": count, "warnings": [lines that name the image]}, in fractions; pq, sq, rq are None where n is 0.
    Images are read one by one, in `workers` processes; the figures do not depend on their number. Raises InputError.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    gt, pred = _read(gt_json), _read(pred_json)
    if "categories" not in gt:
        raise InputError(f"{gt_json}: key 'categories' is missing")
    try:
        isthing = things_by_id(gt["categories"])
    except InputError as error:
        raise InputError(f"{gt_json}: {error}") from error
    stat = PQStat()
    pairs = _pairs(
        _annotations(gt, gt_json),
        _annotations(pred, pred_json),
        Path(gt_folder or Path(gt_json).with_suffix("")),
        Path(pred_folder or Path(pred_json).with_suffix("")),
        pred_json,
        stat.warnings,
    )
    for pair in pairs:
        _check_categories(pair, isthing, stat.warnings)
    with tqdm(desc="PQ", total=len(pairs), unit="image", disable=None) as progress:
        for part in _scores(pairs, workers):
            stat += part
            progress.update(part.images)
    return {**stat.results(gt["categories"]), "images": stat.images, "warnings": stat.warnings}


def _read(path: PathLike) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object with 'annotations', got a {type(document).__name__}")
    return document


def _annotations(document: dict[str, Any], path: PathLike) -> list[dict[str, Any]]:
    """The `annotations` list, each entry with an image_id, a file_name and a segments_info list."""
    annotations = document.get("annotations")
    if not isinstance(annotations, list):
        raise InputError(f"{path}: key 'annotations' is missing or not a list")
    for index, annotation in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(annotation, dict):
            raise InputError(f"{where}: expected an object, got a {type(annotation).__name__}")
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int | str):
            raise InputError(f"{where}: 'image_id' is missing or neither a number nor a text")
        for key, kind in (("file_name", str), ("segments_info", list)):
            if not isinstance(annotation.get(key), kind):
                raise InputError(f"{where}: image {image_id}: '{key}' is missing or not a {kind.__name__}")
    return annotations


def _pairs(
    gt_annotations: list[dict[str, Any]],
    pred_annotations: list[dict[str, Any]],
    gt_folder: Path,
    pred_folder: Path,
    pred_json: PathLike,
    warnings: list[str],
) -> list[_Pair]:
    """Pair by image_id. Of two predictions for one image the last counts, as in panopticapi."""
    predictions: dict[int | str, dict[str, Any]] = {}
    for annotation in pred_annotations:
        if annotation["image_id"] in predictions:
            warnings.append(f"image {annotation['image_id']}: predicted more than once; the last entry counts")
        predictions[annotation["image_id"]] = annotation
    pairs: list[_Pair] = []
    seen: set[int | str] = set()
    for annotation in gt_annotations:
        image_id = annotation["image_id"]
        if image_id not in predictions:
            raise InputError(f"image {image_id}: no prediction in {pred_json}{_id_type_hint(image_id, predictions)}")
        if image_id in seen:
            warnings.append(f"image {image_id}: more than one ground truth; each counts")
        seen.add(image_id)
        pairs.append(
            _Pair(
                f"{image_id} ({annotation['file_name']})",
                gt_folder / annotation["file_name"],
                annotation["segments_info"],
                pred_folder / predictions[image_id]["file_name"],
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


def _check_categories(pair: _Pair, isthing: Mapping[int, bool], warnings: list[str]) -> None:
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


def _scores(pairs: Sequence[_Pair], workers: int) -> Iterator[PQStat]:
    """One PQStat for each CHUNK of pairs, in order: what travels between processes is short lists and small sums."""
    chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    if workers == 1:
        yield from map(_score, chunks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_score, chunks)


def _score(pairs: Sequence[_Pair]) -> PQStat:
    stat = PQStat()
    for pair in pairs:
        gt_ids = _read_ids(pair.gt_png, f"image {pair.image}: ground truth")
        pred_ids = _read_ids(pair.pred_png, f"image {pair.image}: prediction")
        stat.accumulate(gt_ids, pair.gt_segments, pred_ids, pair.pred_segments, pair.image)
    return stat


def _read_ids(path: Path, where: str) -> np.ndarray:
    try:
        return read_panoptic_png(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
