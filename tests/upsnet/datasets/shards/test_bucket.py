"""A data set in a bucket that answers badly at times: written, read, and kept on this machine's disk."""

from __future__ import annotations

import logging
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.upsnet.datasets.shards.conftest import SIZE
from upsnet import buckets, storage
from upsnet.datasets import shard_cache
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.shards.write import write_shards
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError, ServerError

SET = "shards/train.shards.json"


@pytest.fixture
def away(bucket: Bucket, shards: Path) -> Bucket:
    """The same shards in the bucket."""
    for path in shards.glob("train*"):
        storage.write(bucket.at(f"shards/{path.name}"), path.read_bytes())
    bucket.faults()
    return bucket


def same(one: PanopticFolder, other: PanopticFolder) -> bool:
    pairs = zip(one.records, other.records, strict=True)
    return all(
        np.array_equal(a, b) for left, right in pairs for a, b in zip(one.read(left), other.read(right), strict=True)
    )


def fetched(bucket: Bucket) -> list[str]:
    """Tars that were asked for whole."""
    return [each for each in bucket.seen() if re.fullmatch(r"GET .*\.tar", each)]


def test_written_to_a_bucket_and_read_from_it(bucket: Bucket, shapes_folder: Path, shards: Path) -> None:
    bucket.faults(Fault("busy", every=5), Fault("cut", every=7, method="GET"))
    written = write_shards(Split.usual(shapes_folder / "train.json"), bucket.at("a/b"), SIZE, workers=1, progress=False)
    assert written.split.shards == bucket.at("a/b/train.shards.json")
    assert storage.sizes(bucket.at("a/b")) == {each.name: each.stat().st_size for each in shards.glob("train*")}
    assert all(storage.read(bucket.at(f"a/b/{each.name}")) == each.read_bytes() for each in shards.glob("train*"))
    assert same(PanopticFolder(written.split), PanopticFolder(shapes_folder / "train.json"))
    checkup = check_split(written.split, 1, progress=False)
    assert checkup.tally.images == 24 and not checkup.tally.findings()


def test_a_photo_and_its_png_are_one_request(away: Bucket) -> None:
    folder = PanopticFolder(ShardSplit(shards=away.at(SET)))
    away.faults()
    for record in folder.records:
        folder.read(record)
    assert len(away.seen()) == len(folder) and all(" bytes=" in each for each in away.seen())


def test_a_bucket_that_is_away_is_no_fault_of_the_data(away: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "ATTEMPTS", 2)
    split = ShardSplit(shards=away.at(SET))
    folder = PanopticFolder(split)
    away.faults(Fault("busy", path=r"\.tar$"))
    with pytest.raises(ServerError, match=r"image \d+: s3://.*\.tar: cannot be read: the server says 503"):
        folder.read(folder.records[0])
    with pytest.raises(ServerError, match=r"\.tar: cannot be read: the server says 503"):
        check_split(split, 1, progress=False)
    away.faults(Fault("busy"))
    with pytest.raises(ServerError, match=r"train\.shards\.json: cannot be read"):
        PanopticFolder(split)


# On this machine's disk


def read_all(split: ShardSplit, answers: Any) -> None:
    folder = PanopticFolder(split)
    answers.put([int(folder.read(record)[0].sum()) for record in folder.records])


def test_each_shard_is_fetched_once_a_machine(away: Bucket, shards: Path, tmp_path: Path) -> None:
    split = ShardSplit(shards=away.at(SET), cache=tmp_path / "cache")
    away.faults(Fault("busy", every=9), Fault("cut", every=11))
    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    readers = [context.Process(target=read_all, args=(split, answers)) for _ in range(3)]
    for reader in readers:
        reader.start()
    found = [answers.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(60)
    local = PanopticFolder(shards / "train.shards.json")
    assert found == [[int(local.read(record)[0].sum()) for record in local.records]] * 3
    tars = {path.name: path for path in shards.glob("train*.tar")}
    copies = {path.read_bytes() for path in (tmp_path / "cache").glob("*.tar")}
    assert copies <= {path.read_bytes() for path in tars.values()}
    again = PanopticFolder(split)
    assert same(again, local)  # what another process was at came now
    assert len(list((tmp_path / "cache").glob("*.tar"))) == len(tars)
    away.faults()
    assert same(again, local) and away.seen() == []


def test_what_has_no_room_is_read_where_it_is(
    away: Bucket, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    split = ShardSplit(shards=away.at(SET), cache=cache, cache_gb=2 * SIZE / 1e9)
    cache.mkdir()
    (cache / ".killed.0123abcd.tar").write_bytes(b"half of one, of a process that was killed")
    assert same(PanopticFolder(split), PanopticFolder(shards / "train.shards.json"))
    kept = [path for path in cache.iterdir() if path.suffix == ".tar"]
    assert 0 < sum(path.stat().st_size for path in kept) <= 2 * SIZE and not list(cache.glob(".killed*"))
    assert len(fetched(away)) == len(kept) < len(list(shards.glob("train*.tar")))
    said = [each.message for each in caplog.records if each.levelno == logging.WARNING and str(cache) in each.message]
    assert said == [f"{cache}: no room for more shards; those that are not in it are read where they are"]
    shard_cache.full.clear()


def test_a_shard_that_is_another_by_now_does_not_come_in(away: Bucket, tmp_path: Path) -> None:
    folder = PanopticFolder(ShardSplit(shards=away.at(SET), cache=tmp_path / "cache"))
    for name in storage.names(away.at("shards")):
        if name.endswith(".tar"):
            content = bytearray(storage.read(away.at(f"shards/{name}")))
            content[-1] ^= 1  # in no photo
            storage.write(away.at(f"shards/{name}"), bytes(content))
    with pytest.raises(
        InputError, match=r"train-00000\d\.tar: its bytes were changed after it was written \(SHA-256\)"
    ):
        folder.read(folder.records[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("values", [{"cache_gb": 0}, {"cache_gb": "much"}, {"cash": "x"}])
def test_what_a_cache_is_not(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ShardSplit(shards="x.shards.json", **values)
