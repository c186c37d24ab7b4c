from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from upsnet.categories import Categories
from upsnet.command_line import predict as predict_module
from upsnet.command_line.predict import describe, predict_files
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError
from upsnet.manifest import Manifest
from upsnet.metrics.pq_files import PQStat
from upsnet.result import PanopticResult, Segment
from upsnet.runtimes.predictor import RawPrediction


class Halves:
    """Sky above, grass below: a predictor for photos of any content."""

    name = "halves"

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def predict(self, images: np.ndarray, sizes: np.ndarray, scales: np.ndarray) -> RawPrediction:
        panoptic = np.zeros(images.shape[:3], np.uint8)
        segments = np.zeros((len(images), 10, 7), np.float32)
        segments[:, 1, 0], segments[:, :2, 1] = 1, 1
        for row, (height, width) in zip(panoptic, sizes, strict=True):
            row[: (height + 1) // 2, :width], row[(height + 1) // 2 : height, :width] = 1, 2
        return RawPrediction(panoptic, segments, np.full(len(images), 2, np.int32))

    def close(self) -> None:
        pass


@pytest.fixture
def halves(fake: Callable[..., Any]) -> Halves:
    return Halves(fake("x").manifest)


def weird_photos(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Files as users have them, with the upright (height, width) each must come out at."""
    folder.mkdir()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "print.jpg")
    rgb.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.full((33, 7), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (700, 3)).save(folder / "thin.webp")
    sizes = {"rotated.jpg": (90, 40), "deep.png": (33, 7), "dot.png": (1, 1), "thin.webp": (3, 700)}
    return [(path, sizes.get(path.name, (40, 90))) for path in sorted(folder.iterdir())]


def test_photos_of_every_kind(halves: Halves, tmp_path: Path) -> None:
    photos = weird_photos(tmp_path / "photos")
    out = tmp_path / "new" / "out"
    lines = predict_files(halves, [path for path, _ in photos], out)
    assert lines[0] == f"{photos[0][0]}: sky, grass"
    content = json.loads((out / "predictions.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == list(range(1, len(photos) + 1))
    for entry, (path, size) in zip(content["annotations"], photos, strict=True):
        assert entry["file_name"] == f"{path.stem}.png"
        ids = read_panoptic_png(out / "predictions" / entry["file_name"])
        assert ids.shape == size
        assert {segment["category_id"] for segment in entry["segments_info"]} <= {9, 200}  # original ids
        stat = PQStat()  # what was written is what an evaluator accepts
        truth = [{**segment, "area": int((ids == segment["id"]).sum())} for segment in entry["segments_info"]]
        stat.accumulate(ids, truth, ids, entry["segments_info"])
        assert stat.results(content["categories"])["results"]["All"]["pq"] == 1
        with Image.open(out / f"{path.stem}_overlay.jpg") as picture:
            assert picture.width * size[0] == picture.height * size[1]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{path.stem}_overlay.jpg" for path, _ in photos] + ["predictions", "predictions.json"]
    )


def test_a_bad_photo_among_good_ones_leaves_nothing(halves: Halves, tmp_path: Path) -> None:
    photos = [path for path, _ in weird_photos(tmp_path / "photos")]
    bad = tmp_path / "cut.jpg"
    bad.write_bytes((tmp_path / "photos" / "rotated.jpg").read_bytes()[:400])
    for missing in (bad, tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(InputError, match=missing.name):
            predict_files(halves, [*photos, missing], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_failure_midway_leaves_an_existing_folder_as_it_was(halves: Halves, tmp_path: Path) -> None:
    photos = [path for path, _ in weird_photos(tmp_path / "photos")]
    out = tmp_path / "out"
    predict_files(halves, photos[:1], out)
    (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    calls = []

    class Failing(Halves):
        def predict(self, *arrays: np.ndarray) -> RawPrediction:
            calls.append(1)
            if len(calls) == 3:
                raise InputError("the server is gone")
            return super().predict(*arrays)

    with pytest.raises(InputError, match="gone"):
        predict_files(Failing(halves.manifest), photos, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(out.glob(".*"))
    predict_files(halves, photos[1:2], out)  # and a later run adds to the folder
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / f"{photos[0].stem}_overlay.jpg").is_file() and (out / f"{photos[1].stem}_overlay.jpg").is_file()


def test_colliding_names(halves: Halves, tmp_path: Path) -> None:
    one, other = tmp_path / "a.jpg", tmp_path / "sub" / "a.png"
    with pytest.raises(InputError, match=r"a\.jpg and .*sub/a\.png would both be written as a"):
        predict_files(halves, [one, other], tmp_path / "out")
    with pytest.raises(InputError, match="is one of the photos and would be replaced"):
        predict_files(halves, [one, tmp_path / "a_overlay.jpg"], tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    Image.new("RGB", (5, 5)).save(one)
    with pytest.raises(InputError, match="is a file, not a folder"):
        predict_files(halves, [one], file)


def test_description_counts_things_and_puts_them_first(halves: Halves) -> None:
    categories: Categories = halves.manifest.categories_table
    segments = [Segment(i, category, 1.0, 1, (0, 0, 1, 1)) for i, category in enumerate([1, 3, 2, 3], 1)]
    assert describe(PanopticResult(np.zeros((1, 1), np.int32), segments), categories) == "1 dog, 2 cat, grass"
    assert describe(PanopticResult(np.zeros((1, 1), np.int32), []), categories) == "nothing found"


def test_command_closes_what_it_opens(halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(halves, "close", lambda: closed.append(1))
    monkeypatch.setattr(predict_module, "open_chosen", lambda *_, **__: halves)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    predict_module.main([tmp_path / "a.png"], tmp_path / "out")
    with pytest.raises(InputError):
        predict_module.main([tmp_path / "b.png"], tmp_path / "out")
    assert closed == [1, 1]
