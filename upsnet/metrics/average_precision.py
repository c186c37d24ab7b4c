"""Box and mask AP as COCO has them: of official files, of arrays, and of panoptic truth with a network's detections.

hotcoco does the arithmetic, which is pycocotools' to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upsnet import hotcoco_package
from upsnet.categories import Categories
from upsnet.datasets.segments import Infos, SegmentInfo, categories_by_id
from upsnet.errors import InputError
from upsnet.files import PathLike, atomic_path
from upsnet.metrics.masks import encode, paste_and_encode
from upsnet.metrics.pq import things_by_id
from upsnet.runtimes.predictor import Instances

FIGURES = {  # name -> places in COCOeval's precision: IoU thresholds, range of areas (all, small, medium, large)
    "AP": (slice(None), 0), "AP50": (0, 0), "AP75": (5, 0),
    "APs": (slice(None), 1), "APm": (slice(None), 2), "APl": (slice(None), 3),
}  # fmt: skip
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

    def add(self, image_id: int, truth: Objects, found: Objects, size: tuple[int, int]) -> None:
        """Add one image of `size` (height, width). InputError for an image that was added before."""
        if image_id in self.images:
            raise InputError(f"image {image_id}: evaluated twice")
        self.images[image_id] = ImageObjects(size, truth, found)

    def accumulate(
        self,
        image_id: int,
        gt_ids: np.ndarray,
        truth: Iterable[SegmentInfo] | Infos,
        found: Instances,
        categories: Categories,
    ) -> None:
        """Add one image: the truth's panoptic ids H x W with their segments (or their `segments_info`), and the photo's
        detections in its pixels.

        Crowds are ignored regions, as COCO has them. Raises InputError for an image that was added before.
        """
        height, width = gt_ids.shape
        objects = truth_objects(gt_ids, truth, categories, image_id)
        self.add(image_id, objects, found_objects(found, (height, width), categories), (height, width))

    def results(self, categories: Categories | Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """-> {"box" and "mask": AP, AP50, AP75, APs, APm, APl, "per_class": {thing id: AP}}, fractions or None.

        None: no truth of that kind. Areas (small, medium, large) are those of the masks, also for box AP.
        """
        things = sorted(id for id, isthing in things_by_id(categories).items() if isthing)
        report = {}
        for name, kind in KINDS.items():
            truth, found = (_coco(self.images, things, kind, side) for side in ("truth", "found"))
            report[name] = figures(truth, found, kind)
            per_class = report[name]["per_class"]  # under hotcoco's numbers
            report[name]["per_class"] = {str(id): per_class[str(number)] for number, id in enumerate(things, 1)}
        return report

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


def make_objects(
    categories: Sequence[int],
    size: tuple[int, int],
    boxes: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    scores: Sequence[float] | None = None,
    crowds: Sequence[bool] | None = None,
) -> Objects:
    """One side of an image of `size` (height, width), n objects with category ids, for AveragePrecision.add.

    boxes n x 4 (x, y, width, height), masks bool n x H x W: one is enough. Boxes are those of the masks, masks fill
    their boxes. scores n, in [0, 1] as a rule: of detections. crowds n: of the truth.
    """
    rle, n = hotcoco_package.load().mask, len(categories)
    for name, column in (("boxes", boxes), ("masks", masks), ("scores", scores), ("crowds", crowds)):
        if column is not None and len(column) != n:
            raise InputError(f"{n} categories, but {name} of {len(column)} objects")
        if column is not None and not np.isfinite(column).all():
            raise InputError(f"the {name} are not finite numbers")
    if masks is not None:
        if masks.shape[1:] != tuple(size):
            raise InputError(f"masks of {masks.shape[1:]} pixels in an image of {tuple(size)}")
        coded = [encode(mask.astype(bool)) for mask in masks]
    elif boxes is not None:
        coded = [rle.frPyObjects([box], *size)[0]["counts"] for box in np.asarray(boxes, np.float64).tolist()]
    else:
        raise InputError("objects need boxes or masks")
    if boxes is None:
        boxes = rle.toBbox(_coded(coded, size))
    return _objects(
        categories,
        boxes,
        coded,
        np.ones(n) if scores is None else np.asarray(scores),
        np.zeros(n, bool) if crowds is None else np.asarray(crowds, bool),
        size,
    )


def truth_objects(
    ids: np.ndarray, truth: Iterable[SegmentInfo] | Infos, categories: Categories, image: object
) -> Objects:
    """The things of a panoptic map; boxes and areas are measured on it. Of entries with one id the last counts."""
    segments = categories_by_id(truth, categories, image)
    things = [(id, categories[index].id, crowd) for id, (index, crowd) in segments.items() if categories[index].isthing]
    columns = np.ascontiguousarray(ids.T)
    masks = [encode((columns == id).T) for id, _, _ in things]
    boxes = hotcoco_package.load().mask.toBbox(_coded(masks, ids.shape))
    crowds = np.array([crowd for *_, crowd in things], bool)
    return _objects([category for _, category, _ in things], boxes, masks, np.ones(len(things)), crowds, ids.shape)


def found_objects(found: Instances, size: tuple[int, int], categories: Categories) -> Objects:
    """Detections of one photo (a batch of one, photo pixels) with their masks pasted at its size.

    Without those whose box or score is not finite, which panoptic_fusion and detectron2 leave out too; what is NaN in a
    mask is outside of it, as in panoptic_fusion.
    """
    finite = np.isfinite(found.boxes[0]).all(1) & np.isfinite(found.scores[0])
    boxes = found.boxes[0][finite]
    masks = paste_and_encode(np.nan_to_num(found.masks[0][finite], nan=0, posinf=1, neginf=0), boxes, size)
    corners = np.clip(boxes.astype(np.float64), 0, np.array([size[1], size[0]] * 2))
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(2)
    ids = [categories[index].id for index in found.categories[0][finite].tolist()]
    return _objects(ids, boxes, masks, found.scores[0][finite], np.zeros(len(ids), bool), size)


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
        np.asarray(hotcoco_package.load().mask.area(_coded(masks, size)), np.float64).reshape(-1),
        masks,
        np.asarray(scores, np.float64),
        crowds,
    )


def _coded(masks: Sequence[bytes], size: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"size": list(size), "counts": counts} for counts in masks]


def figures(truth: Any, found: Any, kind: str) -> dict[str, Any]:
    """One kind of AP, "bbox" or "segm", of two hotcoco.COCO: FIGURES and "per_class"."""
    evaluation = hotcoco_package.load().COCOeval(truth, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # thresholds x recalls x categories x areas, at most 100 each
    report: dict[str, Any] = {name: _mean(precision[iou, ..., area]) for name, (iou, area) in FIGURES.items()}
    return report | {
        "per_class": {str(id): _mean(precision[:, :, index, 0]) for index, id in enumerate(evaluation.params.catIds)}
    }


def _mean(precision: np.ndarray) -> float | None:
    """COCOeval writes -1 where there is no truth."""
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _coco(images: Mapping[int, ImageObjects], things: Sequence[int], kind: str, side: str) -> Any:
    """One side as a hotcoco.COCO. For mask AP a detection's area is its mask's, for box AP its box's.

    Images and categories are numbered from 1 in the order of their ids: hotcoco takes no negative ones.
    """
    annotations: list[dict[str, Any]] = []
    number_of = {id: number for number, id in enumerate(things, 1)}
    for image_number, (_, image) in enumerate(sorted(images.items()), 1):
        for category, box, area, counts, score, crowd in zip(*getattr(image, side), strict=True):
            if int(category) not in number_of:  # nobody asks for it
                continue
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_number,
                "category_id": number_of[int(category)],
                "bbox": box.tolist(),
                "area": box[2] * box[3] if (kind, side) == ("bbox", "found") else float(area),
                "iscrowd": int(crowd),
                "score": float(score),
            }
            if kind == "segm":
                annotation["segmentation"] = {"size": list(image.size), "counts": counts}
            annotations.append(annotation)
    return hotcoco_package.load().COCO(
        {
            "images": [
                {"id": number, "height": image.size[0], "width": image.size[1]}
                for number, (_, image) in enumerate(sorted(images.items()), 1)
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": str(id)} for id, number in number_of.items()],
        }
    )
