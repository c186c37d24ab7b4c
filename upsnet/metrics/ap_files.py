"""AP of detections in the official COCO results format against an official instances JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from upsnet import hotcoco_package
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike, read_json
from upsnet.metrics.average_precision import KINDS, figures

Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]  # x, y, width, height


class _Id(BaseModel, strict=True):
    id: int


class _Object(BaseModel, strict=True):
    image_id: int
    category_id: int


class _Annotation(_Object):
    bbox: Box
    area: FiniteFloat
    iscrowd: Literal[0, 1]


class _Truth(BaseModel):
    images: list[_Id]
    categories: list[_Id]
    annotations: list[_Annotation]


class _Detection(_Object):
    score: FiniteFloat
    bbox: Box | None = None
    segmentation: Any = None


def evaluate(gt_json: PathLike, results_json: PathLike) -> dict[str, dict[str, Any]]:
    """-> {"box" and "mask": AP, AP50, AP75, APs, APm, APl, "per_class": {category id: AP}}, fractions or None.

    None: no truth of that kind. "mask" is there where truth and results have masks. What parts small from large are the
    areas of the detections' boxes for box AP and of their masks for mask AP. Raises InputError, naming file and entry.
    """
    coco = hotcoco_package.load().COCO
    truth, results = read_json(gt_json), read_json(results_json)
    _check(truth, results, gt_json, results_json)
    report = {}
    for name, kind in KINDS.items():
        sides = (truth["annotations"], results)
        if name == "mask" and not all("segmentation" in entry for side in sides for entry in side):
            continue
        # With a box in the results, COCO's reader takes a mask's area from it.
        found = [{key: value for key, value in entry.items() if (name, key) != ("mask", "bbox")} for entry in results]
        try:
            gt = coco(truth)
            report[name] = figures(gt, gt.load_res(found), kind)
        except hotcoco_package.REFUSALS as error:
            raise InputError(f"{results_json}, against {gt_json}: {first_line(error)}") from error
    return report


def _check(truth: Any, results: Any, gt_json: PathLike, results_json: PathLike) -> None:
    """hotcoco takes a missing score for 0, a NaN for a number, and detections of another data set for wrong ones."""
    known = _validated(_Truth, truth, gt_json)
    images, categories = ({entry.id for entry in side} for side in (known.images, known.categories))
    detections = _validated(list[_Detection], results, results_json)
    for path, entries in ((gt_json, known.annotations), (results_json, detections)):
        for index, entry in enumerate(entries):
            where = f"{path}: entry {index}, of image {entry.image_id}"
            if entry.image_id not in images:
                raise InputError(f"{where}: {gt_json} has no such image")
            if entry.category_id not in categories:
                raise InputError(f"{where}: {gt_json} has no category {entry.category_id}")
    for index, detection in enumerate(detections):
        if detection.bbox is None and detection.segmentation is None:
            raise InputError(f"{results_json}: entry {index}, of image {detection.image_id}: neither bbox nor mask")


def _validated(kind: Any, content: Any, path: PathLike) -> Any:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
