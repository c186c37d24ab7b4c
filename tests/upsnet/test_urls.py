"""Photos behind URLs where photos are named one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bucket import Bucket
from tests.bucket_server import Fault
from tests.conftest import Halves
from upsnet import buckets, storage
from upsnet.command_line.predict import predict_files
from upsnet.errors import InputError, ServerError
from upsnet.model import Model
from upsnet.photos import encode_image
from upsnet.sources import find_sources


@pytest.fixture
def photos(bucket: Bucket) -> list[str]:
    urls = [bucket.at("a/1.jpg"), bucket.at("a/b c.png")]
    for url, kind in zip(urls, ("JPEG", "PNG"), strict=True):
        storage.write(url, encode_image(Image.fromarray(np.full((20, 30, 3), 90, np.uint8)), kind))
    bucket.faults(Fault("busy", every=3))
    return urls


def test_the_command_takes_photos_behind_urls(photos: list[str], halves: Halves, tmp_path: Path) -> None:
    here = tmp_path / "here.png"
    Image.new("RGB", (8, 8)).save(here)
    out = tmp_path / "out"
    lines = list(predict_files(Model(halves), [*photos, here], out, []))
    assert lines == [f"{place}: sky, grass" for place in (*photos, here)]
    names = [entry["file_name"] for entry in json.loads((out / "predictions.json").read_text())["annotations"]]
    assert names == ["1.png", "b c.png", "here.png"] and (out / "1_overlay.jpg").is_file()


def test_python_takes_photos_behind_urls(photos: list[str], halves: Halves) -> None:
    model = Model(halves)
    assert model.predict(photos[0]).source == photos[0] and model.predict(photos[0]).name == "1"
    assert [each.name for each in model.stream(photos[1])] == ["b c"]
    assert [each.source for each in model.stream(photos)] == photos


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/", "behind a URL photos are named one by one; list them for --photos-from"),
        ("a/*.jpg", "behind a URL photos are named one by one; list them for --photos-from"),
        ("a/film.mp4", "a video behind a URL is not read; fetch it, and give its path"),
        ("a/none.jpg", "no such file"),
    ],
)
def test_what_is_not_taken_behind_a_url(bucket: Bucket, halves: Halves, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"^s3://.*{name.replace('*', '.')}: {words}$"):
        list(predict_files(Model(halves), [bucket.at(name)], tmp_path / "out", []))
    assert not (tmp_path / "out").exists()


def test_two_urls_of_one_name(photos: list[str], halves: Halves, tmp_path: Path, bucket: Bucket) -> None:
    with pytest.raises(InputError, match=r"1\.jpg: given twice"):
        list(predict_files(Model(halves), [photos[0], photos[0]], tmp_path / "out", []))
    storage.write(bucket.at("b/1.jpg"), storage.read(photos[0]))
    with pytest.raises(
        InputError, match=rf"^{photos[0]} and {bucket.at('b/1.jpg')} would both be written as 1; rename"
    ):
        list(predict_files(Model(halves), [photos[0], bucket.at("b/1.jpg")], tmp_path / "out", []))


def test_a_bucket_that_is_away(
    photos: list[str], halves: Halves, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ATTEMPTS", 2)
    bucket.faults(Fault("busy"))
    with pytest.raises(ServerError, match="the server says 503"):
        Model(halves).predict(photos[0])


def test_others_refuse_them() -> None:
    with pytest.raises(InputError, match=r"^https://host/1\.jpg: behind a URL; give photos of this machine$"):
        list(find_sources(["https://host/1.jpg?signature=abc"]))
