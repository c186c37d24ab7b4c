"""Training's loader on shards in a bucket that answers badly at times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.training.data.open_shapes import sampler
from training.data.coco_panoptic import PanopticDataset
from training.data.loader import make_loader, reading
from training.data.transforms import Augment
from upsnet.datasets.shards.write import write_shards
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import ServerError
from upsnet.geometry import ResizeRule

AUGMENT = Augment(flip=0.5, color=0.2)
RULE = ResizeRule(short_side=80, max_side=120, divisor=16)


def test_the_batches_are_those_of_the_folder(bucket: Bucket, shapes_folder: Path, tmp_path: Path) -> None:
    """With workers, forked from a process that has read from the bucket, which share a cache that not all fits in."""
    source = Split.usual(shapes_folder / "train.json")
    shards = write_shards(source, bucket.at("set"), 50_000, check="json", progress=False).split.shards
    split = ShardSplit(shards=shards, cache=tmp_path / "cache", cache_gb=120_000 / 1e9)
    here, there = (PanopticDataset(each, RULE, AUGMENT) for each in (source, split))
    bucket.faults(Fault("busy", every=4), Fault("cut", every=5))
    expected = list(make_loader(here, sampler(len(here), 4, 6)))
    found = list(make_loader(there, sampler(len(there), 4, 6), workers=2))
    assert [batch.image_ids for batch in found] == [batch.image_ids for batch in expected]
    assert all(torch.equal(one.images, other.images) for one, other in zip(expected, found, strict=True))
    assert any("bytes=" in each for each in bucket.seen()) and list((tmp_path / "cache").glob("*.tar"))


def test_a_bucket_that_is_away_is_one_line(bucket: Bucket, shapes_folder: Path) -> None:
    split = write_shards(
        Split.usual(shapes_folder / "train.json"), bucket.at("set"), check="json", progress=False
    ).split
    dataset = PanopticDataset(split, RULE)
    bucket.faults(Fault("busy", path=r"\.tar$"))
    loader = make_loader(dataset, sampler(len(dataset), 4, 2), workers=1)
    with (
        pytest.raises(ServerError, match=r"image \d+: s3://.*\.tar: cannot be read: the server says 503 .*attempts in"),
        reading(loader) as batches,
    ):
        list(batches)
