"""Processes that end in the middle, and several at once: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import ROOT
from tests.upsnet.bulk.stand_in import contents, run, start, write_photos

PAUSE = 0.004  # seconds a photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 120 photos; one cannot be read."""
    path = write_photos(tmp_path_factory.mktemp("photos"), 120)
    (path.parent / "00077.png").write_text("no photo")
    return path


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes of it."""
    out = tmp_path_factory.mktemp("whole")
    run(photos, out, block=7)
    return out


def wait_for(out: Path, blocks: int, process: subprocess.Popen[str]) -> None:
    """Until so many blocks are there."""
    while len(list(out.glob("predictions-*"))) < blocks:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_killed_at_any_moment_it_goes_on(photos: Path, whole: Path, tmp_path: Path) -> None:
    """With kill -9, each time with another number of shards."""
    out, moments = tmp_path / "out", random.Random(0)
    for attempt, shards in enumerate((1, 3, 2)):
        process = start(photos, out, "--shard", f"1/{shards}", "--block", 7, "--pause", PAUSE)
        wait_for(out, 2 * attempt + 1, process)
        time.sleep(moments.uniform(0, 3 * 7 * PAUSE))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process.communicate()
    begun = list(out.glob(".predictions-*"))
    there = len(list(out.glob("predictions-*")))
    assert 3 <= there < 18 and not (out / "report.json").exists()
    for path in begun:
        os.utime(path, (0, 0))  # as if that had been long ago
    assert run(photos, out)
    assert contents(out) == contents(whole)
    assert [each.image_id for each in upsnet.read_predictions(out)] == [n for n in range(1, 121) if n != 78]


def test_two_processes_with_the_same_work(photos: Path, whole: Path, tmp_path: Path) -> None:
    """Both begin at once, and both end well."""
    out = tmp_path / "out"
    both = [start(photos, out, "--block", 7, "--pause", PAUSE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")])
def test_interrupted(photos: Path, whole: Path, tmp_path: Path, number: int, status: int, said: str) -> None:
    out = tmp_path / "out"
    process = start(photos, out, "--block", 7, "--pause", 0.02)
    wait_for(out, 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "of 18 blocks are there; the same command goes on" in errors
    assert said in errors and "Traceback" not in errors
    assert not list(out.glob(".*")) and not (out / "report.json").exists()
    assert run(photos, out) and contents(out) == contents(whole)


def test_a_photo_that_kills_is_left_out_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The half-written file tells it to be careful."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/upsnet/bulk/deadly'}")
    photos, out = write_photos(tmp_path / "photos", 12), tmp_path / "out"
    (photos.parent / "00005.png").rename(photos.parent / "deadly.png")
    photos.write_text(photos.read_text().replace("00005.png", "deadly.png"))
    process = start(photos, out, "--block", 4)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGSEGV and len(list(out.glob(".predictions-000001.*"))) == 1
    assert run(photos, out)  # the process of the tests does not die of it
    assert [each.image_id for each in upsnet.read_predictions(out)] == [n for n in range(1, 13) if n != 6]
    (failed,) = (out / "failed.jsonl").read_text().splitlines()
    assert json.loads(failed)["error"] == "deadly.png: reading it kills the process (SIGSEGV)"
    (said,) = caplog.messages  # the other blocks' photos are not read twice
    assert said == f"{out}: block 1 was begun and not ended: its photos are tried in another process"


# Many


@pytest.mark.large
def test_some_that_cannot_be_read_among_ten_thousand(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 10_000)
    bad = sorted(random.Random(1).sample(range(10_000), 37))
    for index in bad:
        path = photos.parent / f"{index:05}.png"
        if index % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:30])
    out = tmp_path / "out"
    for shard in ("3/3", "1/3", "2/3"):
        run(photos, out, shard=shard)
    failed = (out / "failed.jsonl").read_text().splitlines()
    assert [int(line.split('"image_id": ')[1].split(",")[0]) - 1 for line in failed] == bad
    found = [each.image_id - 1 for each in upsnet.read_predictions(out)]
    assert found == sorted(set(range(10_000)) - set(bad))


@pytest.mark.large
def test_memory_does_not_grow_with_the_photos(tmp_path: Path) -> None:
    """100 000 of them, by names of which each stands for one of a few files."""
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "a.png")
    peaks = []
    for count in (10_000, 100_000):
        photos = tmp_path / f"{count}.txt"
        photos.write_text("a.png\n" * count)
        process = start(photos, tmp_path / str(count))
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        assert process.stdout and process.stderr
        process.stdout.close()
        process.stderr.close()
        peaks.append(usage.ru_maxrss * 1024)
    assert peaks[1] < peaks[0] + (16 << 20), peaks
