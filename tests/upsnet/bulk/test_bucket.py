"""A list, photos and an output in a real S3 that answers badly at times: counted or listed, never lost, never twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import upsnet
from tests.browser.colours import write_network
from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.conftest import ROOT
from tests.upsnet.bulk.stand_in import run, write_photos
from upsnet import buckets, storage
from upsnet.bulk import block
from upsnet.errors import ServerError

GONE, BAD = "gone.png", "bad.png"
BLOCK = 8


@pytest.fixture
def photo_list(bucket: Bucket, tmp_path: Path) -> str:
    """30 photos, one that is not there and one that is none."""
    path = write_photos(tmp_path / "photos", 30)
    (path.parent / BAD).write_bytes(b"no photo")
    path.write_text(f"{path.read_text()}{GONE}\n{BAD}\n")
    return storage.join(bucket.put_folder(path.parent, "photos"), path.name)


def check(bucket: Bucket, photo_list: str) -> None:
    assert [each.image_id for each in upsnet.read_predictions(bucket.at("out"))] == list(range(1, 31))
    report = json.loads(storage.read(bucket.at("out/report.json")))
    assert (report["photos"], report["predicted"], report["left_out"]) == (32, 30, 2)
    failed = storage.read(bucket.at("out/failed.jsonl")).decode().splitlines()
    assert len(failed) == 2 and "gone.png: no such file" in failed[0] and "bad.png: not a readable image" in failed[1]


@pytest.mark.parametrize("kind", ["busy", "cut"])
def test_a_bucket_that_is_busy_at_times(bucket: Bucket, photo_list: str, kind: str) -> None:
    bucket.faults(Fault(kind, every=4))
    assert run(photo_list, bucket.at("out"), block=BLOCK)
    bucket.faults()
    check(bucket, photo_list)
    assert buckets.repeats.counts[bucket.url] > 5


def test_a_bucket_that_is_away_for_long_ends_the_run_which_goes_on_later(
    bucket: Bucket, photo_list: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "WAITS", (0,))
    monkeypatch.setattr(buckets, "ATTEMPTS", 2)
    bucket.faults(Fault("broken", path=r"/000(1[5-9]|2\d)\.png"))
    with pytest.raises(ServerError, match=r"00015\.png: cannot be read: the server says 500 \(2 attempts in"):
        run(photo_list, bucket.at("out"), block=BLOCK)
    assert storage.names(bucket.at("out")) == {"plan.json", "predictions-000000.tar"}
    bucket.faults(Fault("broken", method="PUT", path="predictions"))
    with pytest.raises(ServerError, match=r"predictions-000001\.tar: cannot be written: the server says 500"):
        run(photo_list, bucket.at("out"))
    bucket.faults()
    assert run(photo_list, bucket.at("out"))
    check(bucket, photo_list)
    assert not any("predictions-000000.tar" in each for each in bucket.seen() if each.startswith("PUT"))


def test_credentials_that_are_refused_leave_no_photo_out(bucket: Bucket, photo_list: str) -> None:
    bucket.faults(Fault("refused", path=r"png$", code="ExpiredToken"))
    with pytest.raises(ServerError, match="the credentials are refused: they have expired"):
        run(photo_list, bucket.at("out"))
    assert storage.names(bucket.at("out")) == set()


@pytest.mark.large
def test_the_command_from_a_bucket_to_a_bucket(bucket: Bucket, photo_list: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = write_network(tmp_path / "model.onnx")
    bucket.faults(Fault("busy", every=7), Fault("cut", every=9))
    command = [sys.executable, "-m", "upsnet", "predict", "--photos-from", photo_list, "--out", bucket.at("out")]
    done = subprocess.run([*command, "--model", model], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert f"predicted 30 of 32 photos, left out 2: {bucket.at('out/failed.jsonl')}" in done.stdout
    assert f"{bucket.url}: " in done.stderr and "tried again" in done.stderr and "Traceback" not in done.stderr
    bucket.faults()
    check(bucket, photo_list)
