"""Mean intersection over union of the semantic branch (one category a pixel), from a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.metrics.overlaps import overlaps
from upsnet.metrics.pq import listed_segments


class MeanIoU:
    """Gathers pixels image by image: confusion[i, j] of true category i predicted as j, both contiguous, int64."""

    def __init__(self, categories: int) -> None:
        self.confusion = np.zeros((categories, categories), np.int64)

    def __iadd__(self, other: MeanIoU) -> MeanIoU:
        self.confusion += other.confusion
        return self

    def accumulate(
        self,
        gt_ids: np.ndarray,
        gt_segments_info: Sequence[Mapping[str, Any]],
        predicted: np.ndarray,
        categories: Categories,
        image: object,
    ) -> None:
        """Add one image: the truth's panoptic ids H x W with their segments, and predicted contiguous categories H x W.

        Ignored are void, crowds and ids without a segment. Raises InputError, naming `image`, and adds nothing then.
        """
        if gt_ids.shape != predicted.shape:
            raise InputError(
                f"image {image}: the semantic prediction has the shape {list(predicted.shape)}, its truth "
                f"{list(gt_ids.shape)}"
            )
        if predicted.size and not 0 <= predicted.min() <= predicted.max() < len(self.confusion):
            raise InputError(
                f"image {image}: the semantic prediction holds category {predicted.max()}, but there are "
                f"{len(self.confusion)}"
            )
        segments = listed_segments(gt_segments_info, categories, image)
        for id, index, pixels in zip(*(column.tolist() for column in overlaps(gt_ids, predicted)), strict=True):
            category, crowd = segments.get(id, (0, True))
            if not crowd:
                self.confusion[category, index] += pixels

    def results(self, categories: Categories) -> dict[str, Any]:
        """-> {"miou", "n", "per_class": {category id: IoU}}, fractions.

        A class without a pixel in truth and prediction has no IoU: None, and the mean of the n others leaves it out.
        """
        hits = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        per_class = {
            str(category.id): float(hit / total) if total else None
            for category, hit, total in zip(categories, hits, union, strict=True)
        }
        present = [value for value in per_class.values() if value is not None]
        return {"miou": sum(present) / len(present) if present else None, "n": len(present), "per_class": per_class}
