"""upsnet.load and Model: what opens what, photos of every kind, streams in bounded memory."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import SIZES, FakePredictor, Halves, photo_of, scene, write_dataset
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.model import Model, load
from upsnet.photos import Photo
from upsnet.runtimes.open import choose, open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import RawPrediction
from upsnet.video import VideoWriter


@pytest.fixture
def model(fake: type[FakePredictor]) -> Iterator[Model]:
    with Model(fake("fake runtime")) as opened:
        yield opened


@pytest.fixture
def photos() -> list[np.ndarray]:
    return [photo_of(scene(index)) for index in range(len(SIZES))]


# What opens what


def test_every_form_of_a_model(tiny_run: Path, tmp_path: Path) -> None:
    unexported = tmp_path / "unexported"
    unexported.mkdir()
    (unexported / "last.safetensors").symlink_to(tiny_run / "last.safetensors")
    photo = sorted((tiny_run.parent / "shapes" / "val").iterdir())[0]
    forms: list[tuple[Any, dict[str, Any], str]] = [
        (str(tiny_run), {"threads": 1}, "onnxruntime"),
        (tiny_run / "model.onnx", {}, "onnxruntime"),
        (tiny_run / "engine", {}, "onnxruntime"),
        (tiny_run, {"runtime": "pytorch"}, "pytorch"),
        (unexported, {"device": "cpu"}, "pytorch"),
        (tiny_run / "best.safetensors", {}, "pytorch"),
    ]
    if not (tiny_run / "best.safetensors").exists():
        forms.pop()
    found = []
    for source, options, runtime in forms:
        with load(source, **options) as model:
            assert (model.runtime, model.name, len(model.categories)) == (runtime, "tiny", 8)
            assert model.device.startswith(("cpu", "cuda:0"))
            assert repr(model) == f"<Model tiny in {runtime}: 4 stuff, 4 things; kernels: {model.kernels}>"
            assert model.kernels.startswith("libupsnet_onnxruntime" if runtime == "onnxruntime" else "libupsnet_c")
            found.append(model.predict(photo))
    for each in found[1:]:
        assert (each.ids == found[0].ids).mean() > 0.98
        assert {segment.name for segment in each.segments} <= set(model.categories.names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("empty", "run", "engine", "trained"):
        (tmp_path / name).mkdir()
    for name in ("run/model.onnx", "engine/model.onnx", "trained/last.safetensors", "notes.txt", "old.pth"):
        (tmp_path / name).write_bytes(b"not a model")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "none",
            {},
            "none: no such file or folder; a model is a run's or an engine's folder, an .onnx file, .* grpc://",
        ),
        ("127.0.0.1:8001", {}, "127.0.0.1:8001: no such file or folder; .* or grpc://host:port"),
        ("empty", {}, "empty: neither a run nor an engine: it has no model.onnx and no last.safetensors"),
        ("notes.txt", {}, "notes.txt: no model by its name; a model is .*grpc://host:port$"),
        ("old.pth", {}, "old.pth: no model by its name; .* `upsnet import` reads the original"),
        ("run", {}, "model.onnx: ONNX Runtime cannot load it"),
        ("run", {"runtime": "pytorch"}, "run: holds nothing for the runtime pytorch, only for onnxruntime"),
        ("trained", {"runtime": "onnxruntime"}, "trained: holds nothing .*, only for pytorch; `make onnx` exports it"),
        (
            "run",
            {"runtime": "caffe"},
            "unknown runtime 'caffe'; it is one of pytorch, onnxruntime, ",
        ),
        (
            "run",
            {"device": "cuda"},
            r"model\.onnx: ONNX Runtime cannot run it on cuda:0 \(.*\); device cpu needs no GPU$",
        ),
        ("run", {"device": "gpu"}, "device 'gpu': use auto, cpu, cuda or cuda:N$"),
        ("run", {"device": 0}, "device 0: use auto, cpu, cuda or cuda:N$"),
        ("run", {"threads": 0}, "threads 0: give a number from 1 to 256"),
        ("run", {"threads": 10_000}, "threads 10000: give a number from 1 to 256"),
        ("run", {"threads": "2"}, "threads '2': give a number from 1 to 256"),
        ("", {}, "^'' is no model; a model is a run's or"),
        (None, {}, "^None is no model; a model is a run's or"),
        (["run"], {}, r"^\['run'\] is no model; a model is a run's or"),
        ("n" * 5000, {}, "nnn: no such file or folder; a model is"),
        ("grpc://127.0.0.1:99999", {}, "grpc://127.0.0.1:99999: a server is grpc://host:port"),
        ("run", {"manifest": "m.json"}, "run: manifest is no option of the runtime onnxruntime"),
        ("grpc://127.0.0.1", {}, "grpc://127.0.0.1: a server is grpc://host:port"),
        ("grpc://host:port", {}, "grpc://host:port: a server is grpc://host:port"),
        ("http://127.0.0.1:8000", {}, "http://127.0.0.1:8000: a server is grpc://host:port, with the port of its gRPC"),
        ("s3://bucket/runs/x", {}, "^s3://bucket/runs/x: models are read from this machine's disks: copy it here, and"),
        ("gs://b/m.onnx", {"runtime": "onnxruntime"}, "^gs://b/m.onnx: models are read from this machine's disks: cop"),
        ("file:///runs/x", {}, "^file:///runs/x: models are .* give its path; a server's address is grpc://host:port$"),
        ("https://host/model.onnx", {}, "^https://host/model.onnx: models are read from this machine's disks"),
        ("grpc://127.0.0.1:1", {"runtime": "pytorch"}, "holds nothing for the runtime pytorch, only for triton$"),
        ("grpc://127.0.0.1:1", {"device": "cuda"}, "device is no option of the runtime triton: manifest"),
        ("grpc://127.0.0.1:1", {"threads": 2}, "threads is no option of the runtime triton: manifest"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


def test_the_file_of_a_model_behind_a_url() -> None:
    for options in (RuntimeOptions(model=Path("s3://b/m.onnx")), RuntimeOptions(engine=Path("s3://b/e.plan"))):
        with pytest.raises(InputError, match=r"^s3:/b/.*: no such file; models are read from this machine's disks"):
            open_runtime(options)


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs tritonclient (pip install -e '.[triton]')")
    with pytest.raises(InputError, match=r"^no Triton server answers at 127\.0\.0\.1:1; start one with `make serve`$"):
        load("grpc://127.0.0.1:1")


@pytest.mark.parametrize(
    ("source", "module", "message"),
    [
        ("run", "onnxruntime", r"the runtime onnxruntime is not installed .*pip install 'upsnet-trt\[onnxruntime\]'"),
        ("grpc://127.0.0.1:1", "tritonclient", r"pip install 'upsnet-trt\[triton\]'"),
        ("last.safetensors", "training", "a checkpoint, in the runtime pytorch, needs .*training on Python's path"),
    ],
)
def test_a_package_that_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("last.safetensors").touch()
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, "upsnet.runtimes.onnx_runtime", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_a_command_line_names_places_or_a_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    model, checkpoint = Path("run/model.onnx"), Path("some.safetensors")
    for runtime, run, places, expected in (
        (None, "run", {}, ("onnxruntime", model)),
        ("onnxruntime", Path("run"), {"url": "host:1"}, ("onnxruntime", model)),
        (None, "run", {"checkpoint": checkpoint}, ("pytorch", checkpoint)),
        (None, "run", {"url": "grpc://host:1"}, ("triton", "grpc://host:1")),
        ("triton", "run", {}, ("triton", "127.0.0.1:8001")),
        ("triton", "grpc://host:1", {}, ("triton", "host:1")),
        (None, "grpc://host:1", {}, ("triton", "host:1")),
        (None, "run/model.onnx", {}, ("onnxruntime", model)),
        ("pytorch", "run", {"checkpoint": checkpoint, "model": model}, ("pytorch", checkpoint)),
    ):
        assert choose(RuntimeOptions(run, runtime, **places)) == expected  # type: ignore[arg-type]
    with pytest.raises(InputError, match="places for pytorch and triton; say which with --runtime"):
        choose(RuntimeOptions("run", checkpoint=checkpoint, url="host:1"))


# Photos


def test_photos_of_every_kind_are_one_photo(model: Model, photos: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "street.png"
    Image.fromarray(photos[0]).save(path)
    with Image.open(path) as opened:
        kinds: list[Photo] = [path, str(path), path.read_bytes(), opened, Image.fromarray(photos[0]), photos[0]]
        predictions = [model.predict(kind) for kind in kinds]
    for each in predictions:
        assert np.array_equal(each.ids, predictions[0].ids) and each.ids.dtype == np.int32
        assert each.segments == predictions[0].segments
        assert np.array_equal(each.photo, photos[0])
    named, unnamed = (str(path), "street"), ("photo", "photo")
    assert [(each.source, each.name) for each in predictions] == [named, named, unnamed, named, unnamed, unnamed]
    assert {segment.name for segment in predictions[0].segments} == {"sky", "grass", "dog", "cat"}
    assert {segment.category_id for segment in predictions[0].segments} == {9, 200, 3, 7}


def test_a_photo_is_upright(halves: Halves) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (90, 40)).save(buffer, "JPEG", exif=exif)
    assert Model(halves).predict(buffer.getvalue()).ids.shape == (90, 40)


def test_a_list_gives_what_its_photos_give_alone(fake: type[FakePredictor], photos: list[np.ndarray]) -> None:
    predictor = fake("x")
    model = Model(predictor)
    alone = [model.predict(photo) for photo in photos]
    predictor.batches.clear()
    together = model.predict(photos)
    assert [each.ids.shape for each in together] == SIZES
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.ids, other.ids) and one.segments == other.segments
        assert np.array_equal(one.photo, other.photo)
    assert sum(predictor.batches) == len(photos) and len(predictor.batches) < len(photos)
    assert [(each.source, each.name) for each in together[:2]] == [("photo 1", "000001"), ("photo 2", "000002")]
    assert model.predict([]) == [] and len(model.predict((photos[0],))) == 1


def test_a_batch_holds_photos_of_one_shape() -> None:
    shapes: list[tuple[int, ...]] = []

    class Recorded(Halves):
        def predict(self, batch: NetworkBatch) -> RawPrediction:
            shapes.append(batch.images.shape[:3])
            return super().predict(batch)

    wide, tall = np.zeros((48, 60, 3), np.uint8), np.zeros((90, 48, 3), np.uint8)
    rule = ResizeRule(short_side=48, max_side=96, divisor=16)
    model = Model(Recorded(Halves().manifest.model_copy(update={"resize": rule})))
    answers = model.predict([wide, tall, wide[:, :50], tall, wide])
    assert [answer.ids.shape for answer in answers] == [(48, 60), (90, 48), (48, 50), (90, 48), (48, 60)]
    assert shapes == [(2, 48, 64), (2, 96, 48), (1, 48, 64)]


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (["a.png", b"junk"], "photo 2: not a readable image"),
        (["a.png", "none.png"], "none.png: no such file"),
        ([17], "photo 1: a photo is .* not int"),
        (np.zeros((3, 4), np.uint8), "photo: an array must be uint8 H x W x 3 RGB"),
        ("folder", r"folder: more than one photo; iterate over model.stream\('folder'\)"),
        (Path("clip.mp4"), r"clip.mp4: more than one photo; iterate over model.stream\('clip.mp4'\)"),
        ("none.mp4", "none.mp4: no such file"),
        ("n" * 300 + ".jpg", "n.jpg: cannot be read: File name too long"),
    ],
)
def test_what_is_no_photo(
    halves: Halves, folder: Path, monkeypatch: pytest.MonkeyPatch, photo: Any, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("folder").mkdir()
    Path("clip.mp4").touch()
    Image.new("RGB", (5, 5)).save("a.png")
    with pytest.raises(InputError, match=message):
        Model(halves).predict(photo)


def test_a_closed_model_says_so(halves: Halves) -> None:
    with Model(halves) as model:
        stream = model.stream([np.zeros((4, 4, 3), np.uint8)] * 2)
        next(stream)
    model.close()
    assert halves.closed == 1 and repr(model).endswith("closed>")
    with pytest.raises(InputError, match="the model fake is closed; load it again"), model:
        pass
    for use in (lambda: model.predict(np.zeros((4, 4, 3), np.uint8)), lambda: next(stream)):
        with pytest.raises(InputError, match="the model fake is closed; load it again"):
            use()


# Streams


def test_a_folder(model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path / "data", 3)
    (tmp_path / "data" / "val" / "notes.txt").touch()
    (tmp_path / "data" / "panoptic_val").rename(tmp_path / "data" / "val" / "sub")
    with caplog.at_level(logging.WARNING, "upsnet"):
        found = list(model.stream(tmp_path / "data" / "val"))
    assert [each.name for each in found] == ["000", "001", "002", "sub/000", "sub/001", "sub/002"]
    assert [each.source for each in found][::5] == [
        str(tmp_path / "data/val" / name) for name in ("000.png", "sub/002.png")
    ]
    assert len(caplog.messages) == 1 and "notes.txt" in caplog.messages[0]
    assert [each.name for each in model.stream(f"{tmp_path}/data/*/*1.png")] == ["001"]
    assert [each.name for each in model.stream(str(tmp_path / "data" / "val" / "002.png"))] == ["002"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_iterator_is_read_as_it_is_asked_for(halves: Halves, batch_size: int) -> None:
    read: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        buffer = np.zeros((8, 8, 3), np.uint8)
        for number in range(100):
            read.append(number)
            buffer[:] = number  # one buffer for all
            yield buffer

    stream = Model(halves).stream(camera(), batch_size=batch_size)
    assert read == []
    for number in range(2 * batch_size):
        assert next(stream).photo[0, 0, 0] == number
        assert len(read) == (number // batch_size + 1) * batch_size
    assert halves.batches == [batch_size] * 2


def test_a_video_frame_by_frame(halves: Halves, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for _ in range(5):
            writer.add(np.full((32, 48, 3), 200, np.uint8))
    found = list(Model(halves).stream(tmp_path / "clip.mp4", batch_size=2))
    assert [each.ids.shape for each in found] == [(32, 48)] * 5 and halves.batches == [2, 2, 1]
    assert (found[4].source, found[4].name) == (f"{tmp_path / 'clip.mp4'}, frame 5", "clip/000005")
    assert [each.name for each in Model(halves).stream(tmp_path)] == [each.name for each in found]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("none", {}, "none: no such file"),
        ("*.jpg", {}, r"\*\.jpg: no file matches"),
        ("empty", {}, "empty: a folder without photos"),
        (b"\x89PNG", {}, "predict takes one"),
        (None, {}, "predict takes one"),
        (np.zeros((4, 4, 3), np.uint8), {}, "predict takes one"),
        ([], {"batch_size": "2"}, "batch_size '2': give 1 to 4"),
        ([], {"batch_size": 0}, "batch_size 0: give 1 to 4"),
        ([], {"batch_size": 5}, "batch_size 5: give 1 to 4"),
        (["old.pth"], {}, "old.pth: not a readable image"),
    ],
)
def test_what_cannot_be_streamed(
    halves: Halves, folder: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, int], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        list(Model(halves).stream(source, **options))


# The package


HEAVY = {"torch", "onnxruntime", "av", "tritonclient", "fsspec", "pyarrow", "pandas", "ray"}


def test_importing_is_light() -> None:
    heavy = HEAVY | {"numpy", "PIL", "pydantic", "typer"}
    code = f"import sys, upsnet; dir(upsnet); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_loading_takes_in_one_runtime_alone() -> None:
    code = f"import sys, upsnet; upsnet.load; upsnet.save_coco; print({HEAVY} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_public_name_is_there() -> None:
    assert set(upsnet.__all__) <= set(dir(upsnet))
    for name in upsnet.__all__:
        assert getattr(upsnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        upsnet.lod  # noqa: B018
