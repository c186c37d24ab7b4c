"""Training samples from any data set in the official COCO panoptic format; instances come from the panoptic PNGs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data.copy_paste import paste_things
from training.data.sample import IGNORE, Sample
from training.data.transforms import NO_AUGMENTATION, Augment, drafted_for, resize_photo
from upsnet.datasets.folder import PanopticFolder, Record
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError
from upsnet.geometry import ResizeRule, network_scale, to_original
from upsnet.run_lengths import Runs, find_runs, measure_runs, paint


class PanopticDataset(Dataset[Sample]):
    """Samples in the order of the image ids; `categories` come from the JSON.

    dataset[draw, i] is the sample i as augmented at its draw number `draw`, a function of (seed, draw, i) alone, things
    of another image that are pasted on it included;
    dataset[i] is draw 0. By default every draw is the photo at its network size. Images without segments or
    without things are samples like any other. draft: as `data.draft`; sizes, scales and truth are the same with it.
    Raises InputError naming the file and the image: at once for faults of the JSON and missing files, when an image is
    read for faults of its photo and its PNG.
    """

    def __init__(
        self,
        split: Split | ShardSplit,
        rule: ResizeRule,
        augment: Augment = NO_AUGMENTATION,
        seed: int = 0,
        draft: bool = False,
    ) -> None:
        self.folder = PanopticFolder(split)
        self.categories = self.folder.categories
        self.rule, self.augment, self.seed, self.draft = rule, augment, seed, draft
        self.records = self.folder.records.by_image_id()
        self.background = int(self.categories.num_stuff == 0)  # channels of the semantic head before the categories'
        if any(side > rule.max_side for side in augment.short_sides):
            raise InputError(f"augment: short_sides {list(augment.short_sides)} go over max_side {rule.max_side}")
        if augment.copy_paste and (len(self) < 2 or not self.categories.num_things):
            lacking = "no class of things" if not self.categories.num_things else "no second image to paste from"
            raise InputError(f"{self.folder.split.json_file}: {lacking}, which augment.copy_paste needs; leave it out")

    @property
    def image_ids(self) -> list[int]:
        return self.records.image_ids.tolist()

    @property
    def sizes(self) -> np.ndarray:
        """int32 N x 2: height and width of every photo as the JSON has them, 0 and 0 where it has none."""
        return self.records.sizes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        draw, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        seed = int(self._seeds(draw, index, 1).generate_state(1, np.uint64)[0] >> 1)
        sample, most = self._augmented(record, np.random.default_rng(self._seeds(draw, index)), seed)
        donor = self.donor(draw, index)
        if donor is None:
            return sample
        draws = np.random.default_rng(self._seeds(draw, index, 3))
        return paste_things(sample, self._augmented(donor, draws, seed)[0], most, draws)

    def donor(self, draw: int, index: int) -> Record | None:
        """Another image, drawn by lot, whose things are pasted on this one at this draw; None by lot, and where it has
        no things."""
        if not self.augment.copy_paste:
            return None
        draws = np.random.default_rng(self._seeds(draw, index, 2))
        if draws.random() >= self.augment.copy_paste:
            return None
        record = self.records[(index + 1 + int(draws.integers(len(self) - 1))) % len(self)]
        kinds = [self.categories[self.categories.index_of_id(s.category_id)] for s in record.segments if not s.iscrowd]
        return record if any(kind.isthing for kind in kinds) else None

    def _seeds(self, draw: int, index: int, *purpose: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, draw, index % len(self), *purpose])

    def _augmented(self, record: Record, draws: np.random.Generator, seed: int) -> tuple[Sample, tuple[int, int]]:
        """The sample, and the size that it would have unzoomed."""
        rule, zoomed = self.augment.draw_rules(self.rule, draws)
        photo, ids = self.folder.read(record, drafted_for(zoomed) if self.draft else None)
        original = (ids.shape[0], ids.shape[1])
        size, window = zoomed.network_size(*original), rule.network_size(*original)
        image, segments = self.augment.apply(
            resize_photo(photo, size),
            to_original(ids, original, size),  # nearest: pixel i from floor((i + .5) * original / network)
            window,
            draws,
        )
        return self._sample(record, image, segments.numpy(), network_scale(size, original), seed), window

    def _sample(self, record: Record, image: Tensor, ids: np.ndarray, scale: float, seed: int) -> Sample:
        """ids: int32 h x w."""
        runs = find_runs(ids)
        runs = runs._replace(values=self._segment_rows(record, runs))
        measured = measure_runs(runs)
        semantic = np.full(1 + len(record.segments), IGNORE, np.uint8)
        semantic[: self.background] = 0
        number = np.zeros(len(semantic), np.int16)
        labels, boxes = [], []
        for row, box in zip(measured.ids.tolist(), measured.boxes, strict=True):
            if row == 0 or record.segments[row - 1].iscrowd:
                continue
            category = self.categories.index_of_id(record.segments[row - 1].category_id)
            semantic[row] = self.background + category
            if category >= self.categories.num_stuff:
                labels.append(category - self.categories.num_stuff)
                boxes.append([box[0], box[1], box[0] + box[2], box[1] + box[3]])
                number[row] = len(boxes)
        return Sample(
            image=image,
            semantic=torch.from_numpy(paint(runs, semantic[runs.values])),
            instances=torch.from_numpy(paint(runs, number[runs.values])),
            boxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            image_id=record.image_id,
            size=runs.shape,
            scale=scale,
            seed=seed,
        )

    @staticmethod
    def _segment_rows(record: Record, runs: Runs) -> np.ndarray:
        """int16, for each run of ids: 0 for void, else 1 + row in record.segments."""
        listed = np.array([0, *(segment.id for segment in record.segments)], dtype=np.int64)
        order = np.argsort(listed)
        return order[np.searchsorted(listed, runs.values, sorter=order)].astype(np.int16)
