"""Training samples from any data set in the official COCO panoptic format; instances come from the panoptic PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from panoptic.coco_format import read_panoptic_png
from panoptic.dataset import PanopticFolder, Record
from panoptic.errors import InputError
from panoptic.geometry import ResizeRule, to_network, to_original
from training.data.batch import IGNORE, Sample
from training.data.transforms import Augment


class GroundTruth(NamedTuple):
    """One image's truth at its original size, for evaluation."""

    ids: np.ndarray  # int32 H x W, 0 is void
    segments: list[dict[str, Any]]  # segments_info as the JSON has it: original category ids
    file_name: str
    image_id: int
    photo: Path


class PanopticDataset(Dataset[Sample]):
    """Samples in the order of the image ids; `categories` come from the JSON.

    dataset[draw, i] is the sample i as augmented at its draw number `draw`, a function of (seed, draw, i) alone;
    dataset[i] is draw 0. Without `augment` every draw is the photo at its network size. Images without segments or
    without things are samples like any other. Raises InputError naming the file and the image: at once for faults of
    the JSON and missing files, when an image is read for faults of its photo and its PNG.
    """

    def __init__(
        self,
        json_file: Path,
        segments: Path,
        images: Path,
        rule: ResizeRule,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = PanopticFolder(Path(json_file), Path(segments), Path(images))
        self.categories = self.folder.categories
        self.rule, self.augment, self.seed = rule, augment, seed
        for record in self.folder.records:
            self._check(record)
        self.records = sorted(self.folder.records, key=lambda record: record.image_id)
        if len(self.categories) > IGNORE:
            raise InputError(f"{json_file}: {len(self.categories)} categories; the most is {IGNORE}")
        if augment and any(side > rule.max_side for side in augment.short_sides):
            raise InputError(f"augment: short_sides {list(augment.short_sides)} go over max_side {rule.max_side}")

    @property
    def image_ids(self) -> list[int]:
        return [record.image_id for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def ground_truth(self, index: int) -> GroundTruth:
        """The truth of sample `index`, checked against the JSON; the photo is not read."""
        record = self.records[index]
        ids = read_panoptic_png(record.png)
        self._segment_rows(record, ids)
        return GroundTruth(ids, record.segments, record.file_name, record.image_id, record.photo)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        draw, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        photo, ids = self.folder.read(record)
        rows = self._segment_rows(record, ids)
        draws = np.random.default_rng([self.seed, draw, index % len(self)])
        rule, zoomed = self.augment.draw_rules(self.rule, draws) if self.augment else (self.rule, self.rule)
        net = to_network(photo, zoomed)
        height, width = net.size
        augment = self.augment or Augment(flip=0.0)
        image, segments = augment.apply(
            net.image[:height, :width],
            to_original(rows, net.original, net.size),  # nearest: pixel i from floor((i + .5) * original / network)
            rule.network_size(*net.original),
            draws,
        )
        seed = int(np.random.SeedSequence([self.seed, draw, index % len(self), 1]).generate_state(1, np.uint64)[0] >> 1)
        return self._sample(record, image, segments, net.scale, seed)

    def _sample(self, record: Record, image: Tensor, segments: Tensor, scale: float, seed: int) -> Sample:
        """`segments`: h x w, 0 for void, else 1 + row in record.segments."""
        category = [self.categories.index_of_id(s["category_id"]) for s in record.segments]
        crowd = [bool(s.get("iscrowd", 0)) for s in record.segments]
        semantic = torch.tensor(
            [IGNORE, *(IGNORE if c else k for k, c in zip(category, crowd, strict=True))], dtype=torch.uint8
        )
        things = [i for i, k in enumerate(category) if k >= self.categories.num_stuff and not crowd[i]]
        masks = segments == (torch.tensor(things, dtype=segments.dtype) + 1)[:, None, None]
        seen = masks.flatten(1).any(1)
        masks = masks[seen]
        labels = torch.tensor([category[i] - self.categories.num_stuff for i in things], dtype=torch.int64)[seen]
        number = torch.zeros(1 + len(category), dtype=torch.int16)
        number[torch.tensor(things, dtype=torch.int64)[seen] + 1] = torch.arange(1, 1 + len(labels), dtype=torch.int16)
        return Sample(
            image=image,
            semantic=semantic[segments],
            instances=number[segments],
            boxes=tight_boxes(masks),
            labels=labels,
            image_id=record.image_id,
            size=(int(segments.shape[0]), int(segments.shape[1])),
            scale=scale,
            seed=seed,
        )

    def _check(self, record: Record) -> None:
        """InputError unless the image's segments have ids of their own."""
        where = f"{self.folder.gt_json}: image {record.image_id}"
        seen: set[int] = set()
        for segment in record.segments:
            number = segment.get("id")
            if not isinstance(number, int) or number < 1:
                raise InputError(f"{where}: every segment needs an id, an integer from 1 up, not {number!r}")
            if number in seen:
                raise InputError(f"{where}: segment {number} is listed twice")
            seen.add(number)

    def _segment_rows(self, record: Record, ids: np.ndarray) -> np.ndarray:
        """ids -> int64 H x W, 0 for void, else 1 + row in record.segments. InputError where PNG and JSON differ."""
        listed = np.array([0, *(segment["id"] for segment in record.segments)], dtype=np.int64)
        order = np.argsort(listed)
        place = np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)
        rows = order[place]
        unknown = listed[rows] != ids
        where = f"{record.png}: image {record.image_id}"
        if unknown.any():
            raise InputError(f"{where}: segment {ids[unknown][0]} is in the PNG but not in {self.folder.gt_json}")
        pixels = np.bincount(rows.ravel(), minlength=len(listed))[1:]
        if not pixels.all():
            missing = record.segments[int(np.argmin(pixels))]["id"]
            raise InputError(f"{where}: segment {missing} is in {self.folder.gt_json} but not in the PNG")
        return rows


def tight_boxes(masks: Tensor) -> Tensor:
    """bool N x H x W, none empty -> float32 N x 4: x1, y1, x2, y2 of the set pixels, x2 and y2 exclusive."""
    edges = []
    for filled in (masks.any(1), masks.any(2)):  # columns, rows
        first = filled.int().argmax(1)
        edges.append((first, filled.shape[1] - filled.flip(1).int().argmax(1)))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], dim=1).float()
