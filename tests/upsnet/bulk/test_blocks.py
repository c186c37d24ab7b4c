from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import FakePredictor, Halves, write_dataset
from tests.small_disk import small_disk
from tests.upsnet.bulk.stand_in import contents, run, write_photos
from upsnet.bulk import block as block_module
from upsnet.bulk import pipeline as pipeline_module
from upsnet.bulk.output import existing_plan, read_rows, unpack
from upsnet.bulk.report import summary_of
from upsnet.bulk.row import Row
from upsnet.command_line import pq
from upsnet.command_line.command import run as run_command
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError, ServerError
from upsnet.files import PathLike
from upsnet.metrics.pq_files import evaluate
from upsnet.model import Model
from upsnet.named_photos import NamedPhoto
from upsnet.prediction import PanopticPrediction

NO_PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow: pip install -e '.[parquet]'")
FORMATS = ["tar", pytest.param("parquet", marks=NO_PARQUET)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A list of ten tiny photos."""
    return write_photos(tmp_path / "photos", 10)


@pytest.mark.parametrize("format", FORMATS)
def test_predictions_are_those_of_the_model(tmp_path: Path, format: str) -> None:
    """Pixels, segments and ids, photo by photo; and PQ of the output, of the unpacked output and of `save_coco`."""
    gt = write_dataset(tmp_path / "data")
    images = json.loads(gt.read_text())["images"]
    lines = [{"photo": f"val/{each['file_name']}", "image_id": each["id"]} for each in images]
    (tmp_path / "data" / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert not run(tmp_path / "data" / "list.jsonl", tmp_path / "out", FakePredictor("x"), format=format, block=2)
    model = Model(FakePredictor("x"))
    found = list(upsnet.read_predictions(tmp_path / "out"))
    assert [(each.image_id, each.source) for each in found] == [(each["image_id"], each["photo"]) for each in lines]
    for each, image in zip(found, images, strict=True):
        wanted = model.predict(gt.parent / "val" / image["file_name"])
        np.testing.assert_array_equal(each.ids, wanted.ids)
        assert each.segments == wanted.segments and each.categories == wanted.categories
        np.testing.assert_array_equal(each.overlay(), wanted.overlay())  # the photo is found again
    official = evaluate(
        gt, unpack(tmp_path / "out", tmp_path / "unpacked"), pred_folder=tmp_path / "unpacked" / "predictions"
    )
    assert official["images"] == 5 and not official["warnings"]  # the truth is panoptic_val/, not the photos in val/
    assert 0.5 < official["results"]["All"]["pq"] < 1  # the dog of image 2 is grass in the truth
    upsnet.save_coco((model.predict(gt.parent / "val" / each["file_name"]) for each in images), tmp_path / "saved")
    renumbered = json.loads((tmp_path / "saved" / "predictions.json").read_text())
    for entry, image in zip(renumbered["annotations"], images, strict=True):
        entry["image_id"] = image["id"]
    (tmp_path / "saved" / "predictions.json").write_text(json.dumps(renumbered))
    same = evaluate(gt, tmp_path / "saved" / "predictions.json", pred_folder=tmp_path / "saved" / "predictions")
    assert official == same
    with pytest.raises(SystemExit) as end:
        run_command(
            pq.main, ["--gt-json", str(gt), "--pred-json", str(tmp_path / "out"), "--json", str(tmp_path / "pq.json")]
        )
    assert end.value.code == 0 and json.loads((tmp_path / "pq.json").read_text())["results"] == official["results"]


def test_a_tar_is_one_for_everybody(photos: Path, tmp_path: Path) -> None:
    """For tarfile, which finds a COCO panoptic JSON beside the PNGs, and for WebDataset, which finds samples."""
    run(photos, tmp_path / "out", block=4)
    for number in range(3):
        with tarfile.open(tmp_path / "out" / f"predictions-{number:06}.tar") as tar:
            tar.extractall(tmp_path / "all", filter="data")
    coco = [json.loads(path.read_text()) for path in sorted((tmp_path / "all").glob("__block__/*/predictions.json"))]
    annotations = [each for block in coco for each in block["annotations"]]
    assert [each["image_id"] for each in annotations] == list(range(1, 11)) and len(coco) == 3
    for each in annotations:
        ids = read_panoptic_png(tmp_path / "all" / each["file_name"])
        areas = {segment["id"]: segment["area"] for segment in each["segments_info"]}
        assert areas == dict(zip(*map(list, np.unique(ids, return_counts=True)), strict=True))
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset: pip install -e '.[dev]'")
    pattern = str(tmp_path / "out" / "predictions-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [each["__key__"] for each in samples] == [f"{number:012}" for number in range(1, 11)]
    for sample, annotation in zip(samples, annotations, strict=True):
        about = json.loads(sample["json"])
        assert about == annotation | {key: about[key] for key in ("photo", "height", "width", "crc32")}
        assert Image.open(io.BytesIO(sample["png"])).size == (about["width"], about["height"])


def test_parquet_is_one_for_everybody(photos: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install -e '.[dev]'")
    dataset = pytest.importorskip("pyarrow.dataset", reason="needs pyarrow: pip install -e '.[parquet]'")
    (photos.parent / "00003.png").write_text("no photo")
    run(photos, tmp_path / "out", block=4, format="parquet")
    files = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    frame = pandas.concat(map(pandas.read_parquet, files), ignore_index=True)
    assert frame.image_id.tolist() == list(range(1, 11)) and frame.photo[4] == "00004.png"
    assert frame.error.isna().tolist() == [index != 3 for index in range(10)] and frame.png[3] is None
    good = frame[frame.error.isna()]
    assert [Image.open(io.BytesIO(png)).size for png in good.png] == list(zip(good.width, good.height, strict=True))
    assert all(sum(each["area"] for each in row.segments) == row.width * row.height for row in good.itertuples())
    assert dataset.dataset(files).count_rows() == 10


@pytest.mark.parametrize("format", FORMATS)
def test_a_photo_that_cannot_be_read_is_counted_and_listed(photos: Path, tmp_path: Path, format: str) -> None:
    folder = photos.parent
    (folder / "00001.png").write_bytes((folder / "00001.png").read_bytes()[:40])
    (folder / "00002.png").write_text("no photo")
    (folder / "00004.png").unlink()
    (folder / "00005.png").unlink()
    (folder / "00005.png").mkdir()
    photos.write_text(photos.read_text().replace("00007.png", "film.mp4").replace("00008.png", "/no/such/8.png"))
    out = tmp_path / "out"
    assert run(photos, out, block=3, format=format)
    report = json.loads((out / "report.json").read_text())
    assert (report["photos"], report["predicted"], report["left_out"], report["blocks"]) == (10, 4, 6, 4)
    failed = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    errors = {each["image_id"]: each["error"] for each in failed}
    assert errors.pop(2).startswith("00001.png: not a readable image: ")
    assert errors == {
        3: "00002.png: not a readable image: in no format that Pillow knows",
        5: "00004.png: no such file",
        6: "00005.png: a folder, not a photo",
        8: "film.mp4: a video, and a list names photos; `upsnet predict` takes videos by name",
        9: "/no/such/8.png: no such file",
    }
    assert [each.image_id for each in upsnet.read_predictions(out)] == [1, 4, 7, 10]
    before = contents(out)
    assert run(photos, out) and contents(out) == before  # a run without anything to do says the same
    # What was left out is a list of its own
    for name in ("00001.png", "00002.png", "00004.png"):
        shutil.copy(folder / "00000.png", folder / name)
    assert run(out / "failed.jsonl", tmp_path / "again")
    assert [(each.image_id, each.name) for each in upsnet.read_predictions(tmp_path / "again")] == [
        (2, "000000000002"), (3, "000000000003"), (5, "000000000005")
    ]  # fmt: skip


def test_nothing_is_begun_where_nothing_can_be_read(photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "list.txt"
    shutil.move(photos, moved)
    with pytest.raises(
        InputError, match=rf"none of the first 10 photos .*: 00000\.png: no such file \(looked for at {tmp_path}/00000"
    ):
        run(moved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_shards_make_the_same_blocks_byte_for_byte(photos: Path, tmp_path: Path, format: str) -> None:
    run(photos, tmp_path / "whole", block=2, format=format)
    out = tmp_path / "out"
    run(photos, out, shard="2/3", block=2, format=format)
    assert {path.stem for path in out.glob("predictions-*")} == {"predictions-000001", "predictions-000004"}
    assert not (out / "report.json").exists()
    with pytest.raises(InputError, match="3 of 5 blocks are not there yet"):
        next(upsnet.read_predictions(out))
    assert [each.image_id for each in upsnet.read_predictions(out, incomplete=True)] == [3, 4, 9, 10]
    run(photos, out, shard="1/2")  # the number of shards may change
    run(photos, out, shard="2/2")
    assert contents(out) == contents(tmp_path / "whole")


# What does not go together


def test_a_run_that_differs_is_refused(photos: Path, tmp_path: Path, halves: Halves) -> None:
    out = tmp_path / "out"
    run(photos, out, shard="1/2", block=2)
    before = contents(out)
    other = Halves(halves.manifest.model_copy(update={"name": "other"}))
    fewer = Halves(halves.manifest.model_copy(update={"categories": halves.manifest.categories[:3]}))
    for predictor, options, message in (
        (None, {"block": 3}, r"another --block \(2 before, 3 now\); leave --block out, or choose another --out"),
        (other, {}, "another model; give that model again"),
        (fewer, {}, "a model of other classes; give that model again"),
    ):
        with pytest.raises(InputError, match=f"{out}: was begun with {message}"):
            run(photos, out, predictor, **options)
    photos.write_text(photos.read_text().replace("00009", "00008"))
    with pytest.raises(InputError, match="another list of photos; give that list again, or choose another --out"):
        run(photos, out)
    photos.write_text(photos.read_text() + "00009.png\n")
    with pytest.raises(InputError, match=r"another list of photos \(10 before, 11 now\)"):
        run(photos, out)
    assert contents(out) == before


@NO_PARQUET
def test_another_format_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, block=2)
    message = rf"{out}: was begun with another --format \(tar before, parquet now\); leave --format out"
    with pytest.raises(InputError, match=message):
        run(photos, out, format="parquet")


def test_what_is_no_output(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"no plan\.json: it is no output of `upsnet predict --photos-from`"):
        upsnet.read_predictions(out)
    run(photos, out, block=5)
    plan = (out / "plan.json").read_text()
    for text, message in (
        ("{", "not valid JSON"),
        ("{}", "Field required"),
        (plan.replace('"version": 1', '"version": 2'), "version: Input should be 1"),
    ):
        (out / "plan.json").write_text(text)
        with pytest.raises(InputError, match=rf"{out}/plan\.json: .*{message}.*; choose another --out"):
            run(photos, out)
    (out / "plan.json").unlink()
    with pytest.raises(InputError, match=r"holds predictions-000000\.tar without a plan\.json"):
        run(photos, out)


@pytest.mark.parametrize("format", FORMATS)
def test_a_block_that_is_damaged_is_named(photos: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    run(photos, out, block=5, format=format)
    block, other = (out / f"predictions-00000{number}.{format}" for number in (0, 1))
    content = block.read_bytes()
    for damaged in (b"", content[:700], bytes(len(content)), other.read_bytes()):
        block.write_bytes(damaged)
        with pytest.raises(
            InputError, match=rf"{block}: .*(damaged, or no block|is not block 0|ends before byte|is not whole)"
        ):
            run(photos, out)
    block.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{block}: "):
        list(upsnet.read_predictions(out))
    block.unlink()
    assert not run(photos, out) and block.read_bytes() == content


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_is_named_or_does_not_matter(tmp_path: Path, format: str) -> None:
    """Wherever it is: nothing is read back but what was written."""
    photos, out, flips = write_photos(tmp_path / "photos", 6), tmp_path / "out", random.Random(0)
    (photos.parent / "00002.png").write_text("no photo")
    run(photos, out, format=format)
    plan = existing_plan(str(out))
    path = out / plan.file_name(0)
    content = path.read_bytes()

    def read() -> tuple[object, list[Row]]:
        return summary_of(plan, str(out), 0), list(read_rows(plan, str(out)))

    whole, named = read(), 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read() == whole
        except InputError as error:
            assert str(path) in str(error) and "delete it and start the command" in str(error)
            named += 1
    assert named > 50


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk(tmp_path: Path, format: str) -> None:
    """What is done stays, nothing is half-written, and with room the same command goes on."""
    photos = write_photos(tmp_path / "photos", 6)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for index in (4, 5):
        Image.fromarray(noise).resize((900, 700), Image.Resampling.NEAREST).save(photos.parent / f"{index:05}.png")
    whole = tmp_path / "whole"
    run(photos, whole, FakePredictor("x"), block=2, format=format)
    sizes = [path.stat().st_size for path in sorted(whole.glob("predictions-*"))]
    assert max(sizes[:2]) < sizes[2]
    out = tmp_path / "out"
    with small_disk(sizes[2] - 1000), pytest.raises(InputError) as caught:
        run(photos, out, FakePredictor("x"), block=2, format=format)
    assert str(caught.value) == f"{out}/predictions-000002.{format}: cannot be written: File too large"
    assert {path.name for path in out.iterdir()} == {
        "plan.json", f"predictions-000000.{format}", f"predictions-000001.{format}"
    }  # fmt: skip
    run(photos, out, FakePredictor("x"))
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("format", FORMATS)
def test_a_block_is_on_the_disk_before_it_has_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """A power cut leaves no empty block that counts as there."""
    steps: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def synced(file: int) -> None:
        steps.append(("on the disk", os.fstat(file).st_size))
        sync(file)

    def renamed(source: PathLike, target: PathLike) -> None:
        if os.path.basename(target).startswith("predictions-"):
            steps.append(("named", os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    run(photos, tmp_path / "out", block=5, format=format)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("predictions-*"))]
    assert steps == [(step, size) for size in sizes for step in ("on the disk", "named")]


# Servers


class Server(Halves):
    """One that takes photos as they are, fails at some calls, and at one begins to serve another version."""

    def __init__(self, fails: set[int] = frozenset(), other_at: int | None = None) -> None:  # type: ignore[assignment]
        super().__init__()
        self.fails, self.other_at = fails, other_at
        self.model, self.calls = Model(Halves()), 0
        self.in_service = self.manifest

    def answers(self, photos: Iterator[NamedPhoto], at_once: int) -> Iterator[PanopticPrediction]:
        raise NotImplementedError

    def attempts(self, photos: Iterator[NamedPhoto], at_once: int) -> Iterator[Future[PanopticPrediction]]:
        for photo in photos:
            self.calls += 1
            if self.calls == self.other_at:
                self.in_service = self.manifest.model_copy(update={"onnx_sha256": "5" * 64})
            future: Future[PanopticPrediction] = Future()
            try:
                if self.calls in self.fails:
                    raise ServerError("server 127.0.0.1:8001: gone", "UNAVAILABLE")
                future.set_result(self.model.predict(photo.read()))
            except InputError as error:
                future.set_exception(error)
            yield future


def test_a_server_that_fails_is_asked_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(block_module.time, "sleep", waited.append)
    (photos.parent / "00006.png").unlink()
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(photos, whole, block=5)
    assert run(photos, out, Server(fails={3, 4, 5, 6, 14}), block=5)
    assert contents(out) == contents(whole)  # no photo is left out but the one that is not there
    assert waited == [1, 2, 5, 10, 1] and "server 127.0.0.1:8001: gone; block 0 goes on in 1 s" in caplog.text


def test_a_server_that_stays_away_ends_the_run_which_goes_on_later(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(block_module.time, "sleep", lambda _: None)
    out = tmp_path / "out"
    with pytest.raises(ServerError, match="gone"):
        run(photos, out, Server(fails=set(range(7, 100))), block=5)
    assert {path.name for path in out.iterdir()} == {"plan.json", "predictions-000000.tar"}
    assert f"{out}: 1 of 2 blocks are there; the same command goes on" in capsys.readouterr().err
    assert not run(photos, out, Server())
    assert [each.image_id for each in upsnet.read_predictions(out)] == list(range(1, 11))


@pytest.mark.parametrize("of_server", [False, True])
def test_a_disk_that_goes_away_is_waited_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_server: bool
) -> None:
    """As a network's disk does: no photo is left out for it."""
    waited: list[float] = []
    monkeypatch.setattr(block_module.time, "sleep", waited.append)
    stat = os.stat

    def failing(path: PathLike, **options: Any) -> os.stat_result:
        if os.fspath(path).endswith("00007.png") and len(waited) < 2:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", os.fspath(path))
        return stat(path, **options)

    monkeypatch.setattr(pipeline_module.os, "stat", failing)
    out = tmp_path / "out"
    assert not run(photos, out, Server() if of_server else Halves())
    assert waited == [1, 2] and json.loads((out / "report.json").read_text())["left_out"] == 0


def test_another_version_on_the_server_does_not_get_into_the_output(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"was begun with the model fake \w{12}, and what runs now is fake 555555555555"
    ):
        run(photos, out, Server(other_at=8), block=5)
    assert {path.name for path in out.iterdir()} == {"plan.json", "predictions-000000.tar"}
