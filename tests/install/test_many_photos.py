"""`pip install 'upsnet-trt[remote,parquet,ray]'`: photos by the million, and what is said where an extra is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.conftest import Installed
from tests.install.test_client import photo
from tests.serving.conftest import Exported

READ = """
import sys, upsnet
print(*(f"{each.image_id} {each.name}" for each in upsnet.read_predictions(sys.argv[1])), sep="\\n")
"""
# Ray is not started here: its processes listen on every interface (docs/ray.md).
LOADED = """
import sys
import fsspec, ray
import upsnet.bulk.on_ray
for kind, options in {"s3": {"anon": True}, "gs": {"token": "anon"}}.items():
    fsspec.filesystem(kind, **options)
print(upsnet.bulk.on_ray.__file__)
"""


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_a_list_of_photos_behind_urls(many_photos: Installed, exported: Exported, format: str) -> None:
    place = photo(many_photos.work).as_uri()
    (many_photos.work / "list.txt").write_text(f"{place}\nphoto.png\nfile:///nowhere/none.png\n")
    out = (many_photos.work / format).as_uri()
    options = ("--photos-from", "list.txt", "--model", exported.model, "--out", out, "--format", format)
    many_photos.upsnet("predict", *options, code=1)  # one photo is left out
    assert "none.png: no such file" in (many_photos.work / format / "failed.jsonl").read_text()
    read, _ = many_photos.run("python", "-c", READ, out)
    assert [line.split()[0] for line in read.splitlines()] == ["1", "2"]


def test_a_cluster_can_be_started(many_photos: Installed) -> None:
    loaded, _ = many_photos.run("python", "-c", LOADED)
    assert Path(loaded.strip()).is_relative_to(many_photos.folder)


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ("remote", ("list.txt", "--out", "s3://bucket/none")),
        ("remote", ("gs://bucket/list.txt", "--out", "none")),
        ("parquet", ("list.txt", "--out", "none", "--format", "parquet")),
        ("ray", ("list.txt", "--out", "none", "--ray", "local")),
    ],
)
def test_what_is_not_installed_is_named(
    client: Installed, exported: Exported, extra: str, options: tuple[str, ...]
) -> None:
    photo(client.work)
    (client.work / "list.txt").write_text("photo.png\n")
    output, error = client.upsnet("predict", "--photos-from", *options, "--model", exported.model, code=2)
    assert not output and error.count("\n") == 1
    assert error.startswith("error: ") and f"pip install 'upsnet-trt[{extra}]'" in error
    assert not (client.work / "none").exists()
