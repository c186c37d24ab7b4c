"""Opens the data sets that a configuration names."""

from __future__ import annotations

import hashlib

import numpy as np

from training.config import Config, DataConfig
from training.data.batch import StepSampler, orientations
from training.data.coco_panoptic import PanopticDataset
from training.data.transforms import Augment
from training.schedule import Plan
from upsnet import storage
from upsnet.categories import Categories, differences
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError


def check_data(split: Split | ShardSplit, key: str) -> None:
    """InputError naming the first part of a data set that is not there."""
    if isinstance(split, ShardSplit):
        if not storage.exists(split.shards):
            raise InputError(
                f"{split.shards}: no such file ({key}.shards); `upsnet data shards --gt-json {split.name}.json --out "
                "FOLDER` makes it of a data set in folders"
            )
        return
    for name, path in split:
        if not path.exists():
            raise InputError(
                f"{path}: no such {'file' if name == 'json_file' else 'folder'} ({key}.{name}); `upsnet shapes --out "
                "data/shapes` makes the demo's data set, `upsnet data coco` and `upsnet data cityscapes` prepare "
                "theirs, `upsnet data split` makes train and val of yours; where they lie say `upsnet train --data "
                f"FOLDER`, or {key}.*"
            )


def open_training(data: DataConfig, seed: int) -> PanopticDataset:
    """The training set with its augmentation; InputError where it is missing or faulty."""
    check_data(data.train, "data.train")
    augment = Augment(**data.augment.model_dump(), short_sides=data.short_sides)
    return PanopticDataset(data.train, data.resize, augment, seed, data.draft)


def open_validation(data: DataConfig, categories: Categories) -> PanopticFolder:
    """The validation set; InputError where it is missing or its categories are not `categories`, the training set's."""
    check_data(data.val, "data.val")
    folder = PanopticFolder(data.val)
    own, other = data.val.json_file, data.train.json_file
    if found := differences(folder.categories, categories, str(own), str(other)):
        raise InputError(f"{own}: its categories are not those of {other}: {found}; give both the same table")
    return folder


def image_digest(dataset: PanopticDataset) -> str:
    """SHA-256 of the images' ids: a resumed run's data may have moved, but it must be the same images."""
    return hashlib.sha256(" ".join(map(str, dataset.image_ids)).encode()).hexdigest()


def make_sampler(
    dataset: PanopticDataset, config: Config, plan: Plan, rank: int = 0, first_step: int = 0
) -> StepSampler:
    """The share of process `rank` in every global batch; InputError where sizes are needed that the JSON lacks."""
    groups = [0] * len(dataset)
    if config.data.group_aspect_ratio:
        unknown = np.flatnonzero(~dataset.sizes.all(1))
        if len(unknown):
            raise InputError(
                f"{config.data.train.json_file}: image {dataset.image_ids[unknown[0]]} has no width and height, which "
                "data.group_aspect_ratio needs; add them, or turn it off"
            )
        groups = orientations(dataset.sizes)
    return StepSampler(groups, plan, config.seed, rank, first_step)
