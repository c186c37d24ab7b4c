"""Box and mask AP through the official COCOeval, with truth instances that come from the panoptic PNGs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.files import PathLike, atomic_path
from upsnet.metrics.masks import encode, paste_and_encode
from upsnet.metrics.pq import listed_segments
from upsnet.runtimes.predictor import Instances

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of COCOeval.stats
KINDS = {"box": "bbox", "mask": "segm"}


class Objects(NamedTuple):
    """The objects of one side of one image, n rows. Masks are compressed RLE counts: no pixels are kept."""

    categories: np.ndarray  # int64 n, original category ids
    boxes: np.ndarray  # float64 n x 4: x, y, width, height in photo pixels
    areas: np.ndarray  # float64 n, of the masks
    masks: list[bytes]
    scores: np.ndarray  # float64 n; 1 in the truth
    crowds: np.ndarray  # bool n; False for detections


class ImageObjects(NamedTuple):
    size: tuple[int, int]  # height, width
    truth: Objects
    found: Objects


class AveragePrecision:
    """Gathers instances image by image; the figures are computed at the end."""

    def __init__(self) -> None:
        self.images: dict[int, ImageObjects] = {}

    def __iadd__(self, other: AveragePrecision) -> AveragePrecision:
        twice = self.images.keys() & other.images.keys()
        if twice:
            raise InputError(f"image {min(twice)}: evaluated in more than one part")
        self.images |= other.images
        return self

    def accumulate(
        self,
        image_id: int,
        gt_ids: np.ndarray,
        gt_segments_info: Sequence[Mapping[str, Any]],
        found: Instances,
        categories: Categories,
    ) -> None:
        """Add one image: the truth's panoptic ids H x W with their segments, and the photo's detections in its pixels.

        Crowds are ignored regions, as COCO has them. Raises InputError for an image that was added before.
        """
        if image_id in self.images:
            raise InputError(f"image {image_id}: evaluated twice")
        truth = truth_objects(gt_ids, gt_segments_info, categories, image_id)
        self.images[image_id] = ImageObjects(gt_ids.shape, truth, found_objects(found, gt_ids.shape, categories))

    def results(self, categories: Categories) -> dict[str, dict[str, Any]]:
        """-> {"box" and "mask": AP, AP50, AP75, APs, APm, APl, "per_class": {thing id: AP}}, fractions or None.

        None: no truth of that kind. Areas (small, medium, large) are those of the masks, also for box AP.
        """
        return {name: _evaluate(self.images, categories, kind) for name, kind in KINDS.items()}

    def write(self, path: PathLike) -> None:
        """All detections in the official COCO results format: boxes, RLE masks, original category ids."""
        with atomic_path(path) as temporary, Path(temporary).open("w", encoding="utf-8") as stream:
            separator = "[\n"
            for entry in self._entries():
                stream.write(separator + json.dumps(entry))
                separator = ",\n"
            stream.write("\n]\n" if separator != "[\n" else "[]\n")

    def _entries(self) -> Iterator[dict[str, Any]]:
        for image_id, image in sorted(self.images.items()):
            for category, box, _, counts, score, _ in zip(*image.found, strict=True):
                yield {
                    "image_id": image_id,
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "score": float(score),
                    "segmentation": {"size": list(image.size), "counts": counts.decode()},
                }


def truth_objects(
    ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], categories: Categories, image: object
) -> Objects:
    """The things of a panoptic map; boxes and areas are measured on it. Of entries with one id the last counts."""
    segments = listed_segments(segments_info, categories, image)
    things = [(id, categories[index].id, crowd) for id, (index, crowd) in segments.items() if categories[index].isthing]
    columns = np.ascontiguousarray(ids.T)
    masks = [encode((columns == id).T) for id, _, _ in things]
    boxes = rle.toBbox(_coded(masks, ids.shape))
    crowds = np.array([crowd for *_, crowd in things], bool)
    return _objects([category for _, category, _ in things], boxes, masks, np.ones(len(things)), crowds, ids.shape)


def found_objects(found: Instances, size: tuple[int, int], categories: Categories) -> Objects:
    """Detections of one photo (a batch of one, photo pixels) with their masks pasted at its size."""
    boxes = found.boxes[0]
    masks = paste_and_encode(found.masks[0], boxes, size)
    corners = np.clip(boxes.astype(np.float64), 0, np.array([size[1], size[0]] * 2))
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(2)
    ids = [categories[index].id for index in found.categories[0].tolist()]
    return _objects(ids, boxes, masks, found.scores[0], np.zeros(len(ids), bool), size)


def _objects(
    categories: Sequence[int],
    boxes: np.ndarray,
    masks: list[bytes],
    scores: np.ndarray,
    crowds: np.ndarray,
    size: tuple[int, int],
) -> Objects:
    return Objects(
        np.array(categories, np.int64),
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(rle.area(_coded(masks, size)), np.float64).reshape(-1),
        masks,
        np.asarray(scores, np.float64),
        crowds,
    )


def _coded(masks: Sequence[bytes], size: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"size": list(size), "counts": counts} for counts in masks]


def _evaluate(images: Mapping[int, ImageObjects], categories: Categories, kind: str) -> dict[str, Any]:
    things = [category.id for category in categories if category.isthing]
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, things, kind, "truth"), _coco(images, things, kind, "found"), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: _figure(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds x recalls x categories, all areas, 100 each
    per_class = {
        str(id): _figure(precision[:, :, index].mean()) for index, id in enumerate(evaluation.params.catIds)
    }
    return {**figures, "per_class": per_class}


def _figure(value: Any) -> float | None:
    """COCOeval writes -1 where there is no truth."""
    return None if value < 0 else float(value)


def _coco(images: Mapping[int, ImageObjects], things: Sequence[int], kind: str, side: str) -> COCO:
    """One side as pycocotools' own structure. For mask AP a detection's area is its mask's, for box AP its box's."""
    annotations: list[dict[str, Any]] = []
    for image_id, image in sorted(images.items()):
        for category, box, area, counts, score, crowd in zip(*getattr(image, side), strict=True):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(category),
                "bbox": box.tolist(),
                "area": box[2] * box[3] if (kind, side) == ("bbox", "found") else float(area),
                "iscrowd": int(crowd),
                "score": float(score),
            }
            if kind == "segm":
                annotation["segmentation"] = {"size": list(image.size), "counts": counts}
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image_id, "height": image.size[0], "width": image.size[1]} for image_id, image in images.items()
        ],
        "annotations": annotations,
        "categories": [{"id": id} for id in things],
    }
    coco.createIndex()
    return coco
