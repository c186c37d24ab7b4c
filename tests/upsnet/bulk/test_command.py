"""`upsnet predict --photos-from` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Halves
from tests.upsnet.bulk.stand_in import write_photos
from upsnet.bulk import command as bulk_command
from upsnet.command_line import predict
from upsnet.command_line.command import run as run_command


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of five photos; a stand-in takes the place of whatever model is named."""
    monkeypatch.setattr(bulk_command, "open_runtime", lambda source: Halves())
    return write_photos(tmp_path / "photos", 5)


def upsnet_predict(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(predict.main, list(map(str, arguments)))
    assert isinstance(end.value.code, int)
    return end.value.code


def test_exit_status_and_words(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--photos-from", photos, "--out", tmp_path / "out", "--url", "127.0.0.1:1"
    assert upsnet_predict(*command, "--block", 2, "--shard", "1/2", "--readers", 3) == 0
    assert "1 of 3 blocks are not there yet (other shards')" in capsys.readouterr().out
    (photos.parent / "00003.png").unlink()
    assert upsnet_predict(*command) == 1  # as of a folder: something was left out
    said = capsys.readouterr().out
    assert f"all 3 blocks are there: predicted 4 of 5 photos, left out 1: {tmp_path}/out/failed.jsonl" in said
    assert json.loads((tmp_path / "out" / "report.json").read_text())["left_out"] == 1
    assert upsnet_predict(*command, "--block", 3) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path}/out: was begun with another --block")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg", "--photos-from", "LIST"], "a.jpg: photos are either named or listed"),
        (["a.jpg", "--shard", "1/2"], "--shard is for photos of a list; give --photos-from"),
        (["a.jpg", "--readers", "3"], "--readers is for photos of a list"),
        ([], "no photo: name photos, videos, folders or patterns, or a list with --photos-from"),
        (["--photos-from", "LIST", "--shard", "0/2"], "--shard 0/2: give i/n, as 1/8 to 8/8"),
        (["--photos-from", "LIST", "--shard", "3/2"], "--shard 3/2: give i/n"),
        (["--photos-from", "LIST", "--shard", "1"], "--shard 1: give i/n"),
        (["--photos-from", "LIST", "--format", "zip"], "--format zip: it is one of tar, parquet"),
        (["--photos-from", "LIST", "--block", "0"], "--block 0: give 1 to 100000 photos"),
        (["--photos-from", "NOWHERE"], "NOWHERE: no such file; a list of photos is a file"),
    ],
)
def test_bad_input(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(photos) if each == "LIST" else each for each in arguments]
    assert upsnet_predict(*given, "--out", tmp_path / "out", "--url", "127.0.0.1:1") == 2
    assert f"error: {message}" in capsys.readouterr().err and not (tmp_path / "out").exists()
