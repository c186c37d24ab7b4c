"""A list, photos and an output behind URLs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import upsnet
from tests.upsnet.bulk.stand_in import contents, run, write_photos
from upsnet.bulk.output import unpack
from upsnet.command_line import command, pq

fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install -e '.[remote]'")


def score(predictions: Path | str, folder: Path) -> object:
    """`upsnet pq` of an output, whose truth are the predictions themselves."""
    truth = unpack(folder / "here", folder / "truth")
    given = ["--gt-json", truth, "--pred-json", predictions, "--json", folder / "pq.json"]
    with pytest.raises(SystemExit) as end:
        command.run(pq.main, list(map(str, given)))
    assert end.value.code == 0
    report = json.loads((folder / "pq.json").read_text())
    assert report["images"] == 10 and report["results"]["All"]["pq"] == 1
    return report


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_the_output_is_the_same(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[parquet]'")
    photos = write_photos(tmp_path / "photos", 10)
    photos.write_text(photos.read_text() + "gone.png\n")
    memory = fsspec.filesystem("memory")
    bucket = f"/{tmp_path.name}"
    memory.put(str(photos.parent), f"{bucket}/photos", recursive=True)
    try:
        assert run(photos, tmp_path / "here", block=4, format=format)
        out = f"memory:/{bucket}/out"
        assert run(f"memory:/{bucket}/photos/list.txt", out, shard="2/2", block=4, format=format) is False
        assert run(f"memory:/{bucket}/photos/list.txt", out)
        memory.get(f"{bucket}/out", str(tmp_path / "there"), recursive=True)
        here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
        for name in ("plan.json", "failed.jsonl", f"predictions-000002.{format}"):  # which tell the place
            assert here.pop(name) != there.pop(name)
        assert here == there
        assert f"memory:/{bucket}/photos/gone.png: no such file" in (tmp_path / "there" / "failed.jsonl").read_text()
        assert [each.image_id for each in upsnet.read_predictions(out)] == list(range(1, 11))
        assert score(tmp_path / "here", tmp_path) == score(out, tmp_path)
    finally:
        memory.rm(bucket, recursive=True)
