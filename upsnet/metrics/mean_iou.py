"""Mean intersection over union of label maps (one category a pixel), from a confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from upsnet import hotcoco_package
from upsnet.categories import Categories
from upsnet.datasets.segments import Infos, SegmentInfo, categories_by_id
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike
from upsnet.metrics.overlaps import overlaps

UNDECIDED = 255  # a predicted label: none of the categories


class MeanIoU:
    """Gathers pixels image by image: confusion[i, j] of true category i predicted as j, both contiguous, int64;
    undecided[i] of true category i for which nothing was predicted."""

    def __init__(self, categories: int) -> None:
        self.confusion = np.zeros((categories, categories), np.int64)
        self.undecided = np.zeros(categories, np.int64)

    def __iadd__(self, other: MeanIoU) -> MeanIoU:
        self.confusion += other.confusion
        self.undecided += other.undecided
        return self

    def add(self, truth: np.ndarray, predicted: np.ndarray, ignore: int | None = 255) -> None:
        """Add one image: two maps of contiguous categories H x W; pixels whose truth is `ignore` do not count.

        Raises InputError, and adds nothing then, for other values and for maps of different shapes.
        """
        if truth.shape != predicted.shape:
            raise InputError(f"the truth has the shape {list(truth.shape)}, the prediction {list(predicted.shape)}")
        counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
        truth, predicted = truth[counted], predicted[counted]
        classes = len(self.confusion)
        for side, labels in (("truth", truth), ("prediction", predicted)):
            if not np.issubdtype(labels.dtype, np.integer):
                raise InputError(f"the {side}'s labels are {labels.dtype}, not integers")
            if labels.size and not 0 <= labels.min() <= labels.max() < classes:
                raise InputError(
                    f"the {side} holds categories {labels.min()} .. {labels.max()}, but there are 0 .. {classes - 1}"
                )
        pairs = truth.astype(np.int64) * classes + predicted
        self.confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def accumulate(
        self,
        gt_ids: np.ndarray,
        truth: Iterable[SegmentInfo] | Infos,
        predicted: np.ndarray,
        categories: Categories,
        image: object,
    ) -> None:
        """Add one image: the truth's panoptic ids H x W with their segments, and predicted contiguous categories H x W,
        or UNDECIDED.

        Ignored are void, crowds and ids without a segment. Raises InputError, naming `image`, and adds nothing then.
        """
        if gt_ids.shape != predicted.shape:
            raise InputError(
                f"image {image}: the semantic prediction has the shape {list(predicted.shape)}, its truth "
                f"{list(gt_ids.shape)}"
            )
        unknown = predicted[(predicted < 0) | (predicted >= len(self.confusion)) & (predicted != UNDECIDED)]
        if unknown.size:
            raise InputError(
                f"image {image}: the semantic prediction holds category {unknown.max()}, but there are "
                f"{len(self.confusion)}"
            )
        segments = categories_by_id(truth, categories, image)
        for id, index, pixels in zip(*(column.tolist() for column in overlaps(gt_ids, predicted)), strict=True):
            category, crowd = segments.get(id, (0, True))
            if not crowd and index == UNDECIDED:
                self.undecided[category] += pixels
            elif not crowd:
                self.confusion[category, index] += pixels

    def results(self, categories: Categories | None = None) -> dict[str, Any]:
        """-> {"miou", "n", "per_class": {category id: IoU}}, fractions. Without `categories` the indices are the ids.

        A class without a pixel in truth and prediction has no IoU: None, and the mean of the n others leaves it out.
        """
        hits = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) + self.undecided - hits
        ids = range(len(hits)) if categories is None else [category.id for category in categories]
        per_class = {
            str(id): float(hit / total) if total else None for id, hit, total in zip(ids, hits, union, strict=True)
        }
        present = [value for value in per_class.values() if value is not None]
        return {"miou": sum(present) / len(present) if present else None, "n": len(present), "per_class": per_class}


def evaluate(gt_folder: PathLike, pred_folder: PathLike, classes: int, ignore: int | None = 255) -> dict[str, Any]:
    """mIoU of folders of PNGs, grey or palette, whose pixels are categories 0 .. classes - 1; `ignore` in the truth
    does not count. The predictions are named like the truth.

    -> as MeanIoU.results has it, by index. Raises InputError that names the file or the folder.
    """
    evaluator = hotcoco_package.load().semantic.SemanticEval(classes, ignore_index=ignore)
    try:
        evaluator.update_folders(os.fspath(gt_folder), os.fspath(pred_folder))
    except hotcoco_package.REFUSALS as error:
        raise InputError(first_line(error)) from error
    stat = MeanIoU(classes)
    stat.confusion += evaluator.confusion().astype(np.int64)
    return stat.results()
