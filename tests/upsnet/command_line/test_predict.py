from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Halves
from upsnet.command_line import predict as predict_module
from upsnet.command_line.predict import predict_files
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.geometry import NetworkBatch
from upsnet.metrics.pq_files import PQStat
from upsnet.model import Model
from upsnet.runtimes.predictor import RawPrediction
from upsnet.video import Video, VideoWriter


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
    lines = list(predict_files(Model(halves), [path for path, _ in photos], out, []))
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
    bad, empty = tmp_path / "cut.jpg", tmp_path / "empty"
    bad.write_bytes((tmp_path / "photos" / "rotated.jpg").read_bytes()[:400])
    empty.mkdir()
    for wrong in (bad, tmp_path / "absent.jpg", empty, tmp_path / "*.webp"):
        with pytest.raises(InputError, match=wrong.stem.replace("*", r"\*")):
            predict(halves, [*photos, wrong], tmp_path / "out")
        assert not (tmp_path / "out").exists() and halves.batches == []


def test_a_failure_midway_leaves_an_existing_folder_as_it_was(halves: Halves, tmp_path: Path) -> None:
    photos = [path for path, _ in weird_photos(tmp_path / "photos")]
    out = tmp_path / "out"
    predict(halves, photos[:1], out)
    (out / "notes.txt").write_text("mine")
    before = contents(out)

    class Failing(Halves):
        def predict(self, batch: NetworkBatch) -> RawPrediction:
            if len(self.batches) == 2:
                raise InputError("the server is gone")
            return super().predict(batch)

    with pytest.raises(InputError, match="gone"):
        predict(Failing(), photos, out)
    assert contents(out) == before and not list(out.glob(".*"))
    predict(halves, photos[1:2], out)  # and a later run adds to the folder
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / f"{photos[0].stem}_overlay.jpg").is_file() and (out / f"{photos[1].stem}_overlay.jpg").is_file()


def predict(halves: Halves, given: Sequence[PathLike], out: Path) -> list[str]:
    return list(predict_files(Model(halves), given, out, []))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_colliding_names(halves: Halves, tmp_path: Path) -> None:
    one, other, out = tmp_path / "a.jpg", tmp_path / "sub" / "a.png", tmp_path / "out"
    other.parent.mkdir()
    for path in (one, other, tmp_path / "a_overlay.jpg"):
        Image.new("RGB", (5, 5)).save(path)
    with pytest.raises(InputError, match=r"a\.jpg and .*sub/a\.png would both be written as a; rename one"):
        predict(halves, [one, other], out)
    with pytest.raises(InputError, match=r"a\.jpg: given twice"):
        predict(halves, [one, one], out)
    with pytest.raises(InputError, match="is one of the photos and would be replaced"):
        predict(halves, [one, tmp_path / "a_overlay.jpg"], tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        predict(halves, [one], file)


# Folders


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three photos in two folders, and what is no photo."""
    for name in ("b.png", "sub/b.jpg", "sub/c.v2.png"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(path)
    (tmp_path / "album" / "notes.txt").touch()
    return tmp_path / "album"


ALBUM = [
    *("b_overlay.jpg", "predictions.json", "predictions/b.png", "predictions/sub/b.png", "predictions/sub/c.v2.png"),
    *("sub/b_overlay.jpg", "sub/c.v2_overlay.jpg"),
]


def test_a_folder_keeps_its_subfolders(
    halves: Halves, album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "upsnet"):
        lines = predict(halves, [album], tmp_path / "out")
    assert lines == [f"{album / name}: sky, grass" for name in ("b.png", "sub/b.jpg", "sub/c.v2.png")]
    assert sorted(contents(tmp_path / "out")) == ALBUM
    assert len(caplog.messages) == 1 and "notes.txt" in caplog.messages[0], "told once, though it is looked at twice"
    annotations = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    assert [(entry["image_id"], entry["file_name"]) for entry in annotations] == [
        (1, "b.png"),
        (2, "sub/b.png"),
        (3, "sub/c.v2.png"),
    ]


def test_output_inside_the_folder_is_not_read_again(halves: Halves, album: Path) -> None:
    for _ in range(2):
        predict(halves, [album], album / "out")
        assert sorted(contents(album / "out")) == ALBUM
    before = contents(album)
    with pytest.raises(InputError, match="album: both the folder of the photos and the output's"):
        predict(halves, [album], album)
    assert contents(album) == before


def test_output_above_the_folder_replaces_no_photo(halves: Halves, album: Path) -> None:
    predict(halves, [album / "sub"], album)
    assert "b_overlay.jpg" in contents(album) and "predictions/c.v2.png" in contents(album)
    again = album / "sub" / "sub"
    again.mkdir()
    Image.new("RGB", (5, 5)).save(album / "sub" / "x_overlay.jpg")
    Image.new("RGB", (5, 5)).save(again / "x.png")
    with pytest.raises(InputError, match=r"sub/x_overlay\.jpg is one of the photos and would be replaced"):
        predict(halves, [album / "sub"], album)


def test_two_photos_of_one_stem_in_a_folder(halves: Halves, album: Path, tmp_path: Path) -> None:
    """Cameras leave a.jpg beside a.png: both are there, under their whole names."""
    Image.new("RGB", (5, 5)).save(album / "sub" / "b.png")
    predict(halves, [album], tmp_path / "out")
    names = ("sub/b.jpg", "sub/b.png")
    pictures = {*(f"{name}_overlay.jpg" for name in names), *(f"predictions/{name}.png" for name in names)}
    assert pictures <= contents(tmp_path / "out").keys()


def test_files_of_a_folder_that_cannot_be_read_are_left_out(halves: Halves, album: Path, tmp_path: Path) -> None:
    good = predict(halves, [album], tmp_path / "good")
    (album / "broken.jpg").write_text("a note")
    (album / "dangling.png").symlink_to("nowhere")
    left_out: list[str] = []
    assert list(predict_files(Model(halves), [album], tmp_path / "out", left_out)) == good
    assert len(left_out) == 2 and "broken.jpg: not a readable image" in left_out[0] and "dangling.png" in left_out[1]
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "good").keys()
    with pytest.raises(InputError, match=r"broken\.jpg: not a readable image"):
        predict(halves, [album / "broken.jpg"], tmp_path / "named")
    (tmp_path / "bad").mkdir()
    (album / "broken.jpg").rename(tmp_path / "bad" / "broken.jpg")
    with pytest.raises(InputError, match=r"nothing can be read: .*broken\.jpg: not a readable image"):
        predict(halves, [tmp_path / "bad"], tmp_path / "named")
    assert not (tmp_path / "named").exists()


def test_photos_whose_names_are_as_long_as_can_be(halves: Halves, album: Path, tmp_path: Path) -> None:
    """255 bytes; what would be longer with _overlay.jpg at its end is known before the first photo is predicted."""
    (album / "sub" / "b.jpg").rename(album / "sub" / f"{'é' * 121}x.jpg")  # 243 + 12
    (album / "sub" / "c.v2.png").rename(album / "sub" / f"{'é' * 122}.png")
    left_out: list[str] = []
    assert len(list(predict_files(Model(halves), [album], tmp_path / "out", left_out))) == 2
    assert f"sub/{'é' * 121}x_overlay.jpg" in contents(tmp_path / "out")
    assert len(left_out) == 1
    assert left_out[0].endswith(f"{'é' * 122}_overlay.jpg has 256 bytes, of at most 255; rename it")
    with pytest.raises(InputError, match=r"has 256 bytes, of at most 255; rename it"):
        predict(halves, [album / "sub" / f"{'é' * 122}.png"], tmp_path / "named")


def test_a_scan_longer_than_a_jpeg_can_be(halves: Halves, tmp_path: Path) -> None:
    Image.new("RGB", (3, 65501)).save(tmp_path / "scan.png")
    (line,) = predict(halves, [tmp_path / "scan.png"], tmp_path / "out")
    assert line.endswith("(overlay as a PNG: a JPEG ends at 65500 pixels a side)")
    assert sorted(contents(tmp_path / "out")) == ["predictions.json", "predictions/scan.png", "scan_overlay.png"]


def test_two_calls_into_one_folder_at_once(halves: Halves, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (5, 5)).save(tmp_path / f"{name}.png")
    one, other = (predict_files(Model(halves), [tmp_path / f"{name}.png"], tmp_path / "out", []) for name in "ab")
    assert [next(one), next(other)] == [f"{tmp_path / name}.png: sky, grass" for name in "ab"]
    assert list(one) == list(other) == []
    names = [*("a_overlay.jpg", "b_overlay.jpg"), *("predictions.json", "predictions/a.png", "predictions/b.png")]
    assert sorted(contents(tmp_path / "out")) == names


# Videos


@pytest.fixture
def clip(album: Path) -> Path:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    path = album / "clip.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for shade in range(4):
            writer.add(np.full((36, 400, 3), 60 * shade, np.uint8))
    return path


def test_a_video_frame_by_frame(halves: Halves, album: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = predict(halves, [album], out)
    assert lines[1] == f"{clip}: 4 frames: sky, grass"
    frames = [f"predictions/clip/{number:06}.png" for number in range(1, 5)]
    assert sorted(contents(out)) == sorted([*ALBUM, "clip_overlay.mp4", *frames])
    annotations = json.loads((out / "predictions.json").read_text())["annotations"]
    assert [entry["image_id"] for entry in annotations] == list(range(1, 8))
    assert [entry["file_name"] for entry in annotations[1:5]] == [name.removeprefix("predictions/") for name in frames]
    assert read_panoptic_png(out / frames[0]).shape == (36, 400)
    with Video(out / "clip_overlay.mp4") as video:
        assert video.rate == 10 and [frame.shape for frame in video] == [(36, 400, 3)] * 4


def test_a_damaged_video_leaves_nothing(halves: Halves, album: Path, clip: Path, tmp_path: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:500])
    with pytest.raises(InputError, match=r"clip\.mp4: not a readable video"):
        predict(halves, [album / "clip.mp4"], tmp_path / "out")
    assert not (tmp_path / "out").exists() and halves.batches == []


def test_a_video_and_a_folder_of_its_name(halves: Halves, album: Path, clip: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(album / "clip.png")  # goes well: predictions/clip.png
    predict(halves, [album], tmp_path / "out")
    (album / "sub").rename(album / "clip")
    for given, message in (([album], "would both be written as"), ([album / "clip.png", album], "given twice")):
        with pytest.raises(InputError, match=message):
            predict(halves, given, tmp_path / "again")
    with pytest.raises(InputError, match=r"clip/b\.jpg and .*clip\.mp4 would both be written as clip/b"):
        (tmp_path / "first").mkdir()
        (album / "clip").rename(tmp_path / "first" / "clip")
        predict(halves, [tmp_path / "first", clip], tmp_path / "again")


# The command


def test_command_closes_what_it_opens(halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "open_runtime", lambda _: halves)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    predict_module.main(photos=[f"{tmp_path}/a.png"], out=f"{tmp_path}/out")
    with pytest.raises(InputError):
        predict_module.main(photos=[f"{tmp_path}/b.png"], out=f"{tmp_path}/out")
    assert halves.closed == 2


def test_command_prints_names_that_are_no_text(halves: Halves, tmp_path: Path) -> None:
    """A Latin-1 name in a UTF-8 terminal, through the console script's `main`."""
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (5, 5)).save(tmp_path / name)
    code = (
        "import sys, upsnet.command_line.predict as predict\n"
        "from tests.conftest import Halves\n"
        "predict.open_runtime = lambda _: Halves()\n"
        "import upsnet; upsnet.main()"
    )
    command = [sys.executable, "-c", code, "predict", str(tmp_path / name), "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png: sky, grass" in done.stdout
