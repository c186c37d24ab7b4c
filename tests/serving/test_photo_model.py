"""`upsnet_photo` in a real server: what it answers is what `upsnet predict` and `upsnet.load` answer in process."""

from __future__ import annotations

import io
import json
import struct
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import upsnet
from serving.repository import deploy, deploy_engine
from serving.server import TritonServer
from tests.serving import conftest
from tests.serving.conftest import Exported, make_request
from tests.upsnet.bulk.stand_in import contents
from tests.upsnet.bulk.stand_in import run as run_listed
from upsnet.bulk.command import BulkOptions, Here, predict_listed
from upsnet.command_line.predict import predict_files
from upsnet.contract import (
    COCO_PNG,
    LABELS,
    LABELS16,
    OVERLAY,
    PHOTO,
    PHOTO_MODEL,
    PHOTO_OUTPUTS,
    PHOTO_SIZES,
    SEGMENTS_JSON,
    STAGES_JSON,
)
from upsnet.datasets.coco_format import read_panoptic_png
from upsnet.errors import InputError
from upsnet.model import Model
from upsnet.parity.pixels import identical_pixels
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton
LIMIT = 30.0  # seconds: a guard
TINY = 20.0  # a scale that the stand-in's network fails on: only a photo of three pixels a side or less has it


class InProcess(Exported):
    """The stand-in as a Predictor."""

    name = "stand-in"
    device_name, kernels = "cpu", "none"

    def close(self) -> None:
        pass


class Served(NamedTuple):
    """A server, and the same model in this process."""

    server: TritonServer
    model: Model

    def ask(self, *photos: bytes, wanted: list[str] | None = None) -> dict[str, np.ndarray]:
        """Every output, or those that are wanted. InputError with the server's words."""
        grpc = pytest.importorskip("tritonclient.grpc")
        asked = grpc.InferInput(PHOTO, [len(photos), 1], "BYTES")
        asked.set_data_from_numpy(np.array([[photo] for photo in photos], object))
        outputs = [grpc.InferRequestedOutput(name) for name in wanted] if wanted else None
        with grpc.InferenceServerClient(self.server.url, channel_args=LARGE_ANSWERS) as client:
            try:
                result = client.infer(PHOTO_MODEL, [asked], outputs=outputs, client_timeout=LIMIT)
            except grpc.InferenceServerException as error:
                raise InputError(error.message()) from error
        return {each.name: result.as_numpy(each.name) for each in result.get_response().outputs}


@pytest.fixture(scope="module")
def served(triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "POISON", TINY)
        exported = InProcess(folder)
    repository = deploy(exported.model, exported.manifest_path, folder / "repository")
    with TritonServer(repository, environment=triton_environment) as server:
        yield Served(server, Model(exported))


LARGE_ANSWERS = [("grpc.max_receive_message_length", 2**31 - 1)]  # gRPC's own limit is 4 MiB


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Blocks that are large enough to survive JPEG."""
    rough = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
    return rough.repeat(8, 0).repeat(8, 1)[:height, :width]


def photo(height: int, width: int, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(noise(height, width, seed=seed)), "PNG")


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(noise(40, 90)), "JPEG", exif=exif)


def animated() -> bytes:
    frames = [Image.fromarray(noise(40, 50, seed=seed)) for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def header_alone(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


ODD = {
    "one pixel high": photo(1, 90),
    "one pixel wide": photo(90, 1),
    "1:20": photo(8, 160),
    "webp": encoded(Image.fromarray(noise(50, 70)), "WEBP"),
    "ppm": encoded(Image.fromarray(noise(50, 70)), "PPM"),
    "cmyk": encoded(Image.fromarray(noise(50, 70)).convert("CMYK"), "JPEG"),
    **{f"exif {orientation}": rotated(orientation) for orientation in range(1, 9)},
    "16 bits": encoded(Image.fromarray(noise(50, 70, 1)[..., 0].astype(np.uint16) * 257), "PNG"),
    "grey": encoded(Image.fromarray(noise(50, 70, 1)[..., 0]), "JPEG"),
    "alpha": encoded(Image.fromarray(noise(50, 70, 4), "RGBA"), "PNG"),
    "animated": animated(),
    "50 megapixels": encoded(Image.new("L", (10_000, 5_000), 200), "PNG", compress_level=1),
    "truncated": encoded(Image.fromarray(noise(200, 300)), "JPEG")[:3000],
    "more than 50 megapixels": encoded(Image.new("1", (10_000, 5_001)), "PNG"),
    "65536 x 65536 declared": header_alone(65536, 65536),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "no image": b"hello",
    "empty": b"",
    "the network fails": photo(2, 2),
}
REFUSED = list(ODD)[list(ODD).index("truncated") :]


@pytest.mark.parametrize("name", [name for name in ODD if name not in REFUSED])
def test_an_odd_photo_is_answered_as_in_process(served: Served, name: str) -> None:
    expected = served.model.predict(ODD[name])
    wanted = [LABELS, PHOTO_SIZES, SEGMENTS_JSON] if name == "50 megapixels" else PHOTO_OUTPUTS
    answer = served.ask(ODD[name], wanted=wanted)
    assert set(answer) == set(wanted)
    np.testing.assert_array_equal(answer[LABELS], expected.ids[None])
    assert answer[PHOTO_SIZES].tolist() == [list(expected.ids.shape)]
    assert json.loads(answer[SEGMENTS_JSON].item()) == expected.to_dict()["segments"]
    if LABELS16 in wanted:
        assert (answer[LABELS].dtype, answer[LABELS16].dtype) == (np.uint8, np.uint16)
        np.testing.assert_array_equal(answer[LABELS16], answer[LABELS])
        assert Image.open(io.BytesIO(answer[OVERLAY].item())).size == expected.overlay().size
        seconds = json.loads(answer[STAGES_JSON].item())
        assert list(seconds) == ["decode", "resize", "network", "restore"] and min(seconds.values()) > 0


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "the network fails"])
def test_what_is_no_photo_is_refused_in_the_same_words(served: Served, name: str) -> None:
    with pytest.raises(InputError) as expected:
        served.model.predict(ODD[name])
    with pytest.raises(InputError) as refused:
        served.ask(ODD[name])
    assert str(refused.value) == str(expected.value)


def test_a_request_of_several_photos_is_answered_as_each_alone(served: Served) -> None:
    photos = [photo(50, 70), photo(90, 40), photo(30, 30), photo(51, 70)]
    answer = served.ask(*photos)
    assert answer[LABELS].shape == (4, 90, 70)
    for index, each in enumerate(photos):
        expected = served.model.predict(each)
        height, width = expected.ids.shape
        assert answer[PHOTO_SIZES][index].tolist() == [height, width]
        np.testing.assert_array_equal(answer[LABELS][index, :height, :width], expected.ids)
        assert not answer[LABELS][index, height:].any() and not answer[LABELS][index, :, width:].any()
        assert json.loads(answer[SEGMENTS_JSON][index, 0]) == expected.to_dict()["segments"]
    with pytest.raises(InputError, match=r"^photo 2 of 3: not a readable image: in no format that Pillow knows$"):
        served.ask(photos[0], b"hello", photos[1])


def test_label_maps_that_would_fill_the_memory_are_refused(served: Served) -> None:
    flat, tall = (encoded(Image.new("1", size), "PNG") for size in ((20_000, 1), (1, 20_000)))
    with pytest.raises(InputError, match=r"20000 pixels' height and 20000 .* 800000000 bytes, .* one at a time"):
        served.ask(flat, tall, wanted=[LABELS])
    flat, tall = (encoded(Image.new("1", size), "PNG") for size in ((7_000, 1), (1, 7_000)))
    with pytest.raises(InputError, match=r"of 4 photos of up to 7000 .* take 588000000 bytes, over the limit"):
        served.ask(flat, tall, flat, tall, wanted=[LABELS, LABELS16])
    flat, tall = (encoded(Image.new("1", size), "PNG") for size in ((20_000, 1), (1, 20_000)))
    assert served.ask(flat, tall, wanted=[PHOTO_SIZES])[PHOTO_SIZES].tolist() == [[1, 20_000], [20_000, 1]]


def test_callers_at_once_get_their_own_answers_and_the_faults_of_nobody_else(served: Served) -> None:
    """Their photos share batches with broken ones, and with one that makes the network fail."""
    sizes = [(50, 70), (70, 50), (40, 90), (51, 70), (30, 30)]
    good = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    expected = [served.model.predict(each).ids for each in good]
    failed = "the network fails"

    def call(number: int) -> str:
        if number % 3 == 2:
            name = (failed, "truncated", "no image")[number // 3 % 3]
            with pytest.raises(InputError) as refused:
                served.ask(ODD[name], wanted=[LABELS])
            return name if str(refused.value).startswith("photo: ") else str(refused.value)
        index = number % len(good)
        answer = served.ask(good[index], wanted=[LABELS])[LABELS]
        np.testing.assert_array_equal(answer, expected[index][None])
        return "good"

    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(call, range(90)))
    assert {each: said.count(each) for each in said} == {"good": 60, failed: 10, "truncated": 10, "no image": 10}


def test_a_poisoned_tensor_request_neither_ends_the_server_nor_spoils_its_neighbours(served: Served) -> None:
    """Triton 24.10 ended with SIGSEGV: the requests of a failed batch were given one response object."""
    good = make_request(1, 32, 64)
    expected = served.model._opened().predict(good)

    def call(number: int) -> bool:
        with closing(TritonPredictor(served.server.url, manifest=served.model.manifest)) as predictor:
            if number % 4 == 3:
                with pytest.raises(InputError, match=r"inference failed; the server's log has the reason$"):
                    predictor.predict(good._replace(scales=np.full(1, 2 * TINY, np.float32)))
                return False
            for mine, theirs in zip(predictor.predict(good), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(call, range(48))) == 36


def test_stages_and_batches_are_counted_beside_tritons_metrics(served: Served) -> None:
    served.ask(photo(50, 70), wanted=[LABELS])
    url = f"http://127.0.0.1:{served.server.ports['metrics']}/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
    values = {name: float(value) for name, _, value in lines if name.startswith("upsnet_")}
    stages = {("upsnet", "network")} | {
        ("upsnet_photo", stage) for stage in ("decode", "resize", "network", "restore", "encode")
    }
    for model, stage in stages:
        assert values[f'upsnet_stage_milliseconds_total{{model="{model}",stage="{stage}"}}'] > 0
    for model in ("upsnet", "upsnet_photo"):
        assert values[f'upsnet_executed_batches_total{{model="{model}",size="1"}}'] >= 1


def test_it_writes_what_predict_writes(
    tiny_run: Path, triton_environment: Path, shared_data: Path, tmp_path: Path
) -> None:
    """With a trained network, on real photos: byte for byte, and what PyTorch finds but for ties in its last bits."""
    engine, out = tiny_run / "engine", tmp_path / "out"
    repository = deploy_engine(engine, tmp_path / "repository")  # with the kernels that are asked here
    photos = sorted((shared_data / "coco_sample/val2017").glob("*.jpg"))
    with upsnet.load(engine / "model.onnx") as model:
        list(predict_files(model, photos, out, []))
        alone = model.predict(photos)
        with TritonServer(repository, environment=triton_environment) as server:
            answers = [Served(server, model).ask(path.read_bytes()) for path in photos]
    entries = json.loads((out / "predictions.json").read_text())["annotations"]
    with upsnet.load(tiny_run / "last.safetensors") as pytorch:
        for path, answer, entry, here in zip(photos, answers, entries, alone, strict=True):
            png = out / "predictions" / f"{path.stem}.png"
            assert answer[COCO_PNG].item() == png.read_bytes()
            assert answer[OVERLAY].item() == (out / f"{path.stem}_overlay.jpg").read_bytes()
            np.testing.assert_array_equal(answer[LABELS][0], read_panoptic_png(png))
            assert identical_pixels(here.result, pytorch.predict(path).result).mean() > 0.999
            found = [
                (each["id"], each["category_id"], each["area"], each["box"], each["score"])
                for each in json.loads(answer[SEGMENTS_JSON].item())
            ]
            assert found == [
                (each["id"], each["category_id"], each["area"], each["bbox"], each["score"])
                for each in entry["segments_info"]
            ]
            assert found


def test_a_list_of_photos_is_predicted_as_in_process(served: Served, tmp_path: Path) -> None:
    """Byte for byte, what is left out too: so that one run may go on with the other."""
    listed = [name for name in ODD if name not in ("50 megapixels", "the network fails")]
    for number, name in enumerate(listed):
        (tmp_path / f"{number:02}").write_bytes(ODD[name])
    photos = tmp_path / "list"
    photos.write_text("".join(f"{number:02}\n" for number in range(len(listed))))
    source = RuntimeOptions(url=served.server.url)
    run_listed(photos, tmp_path / "here", served.model._predictor, block=5)
    assert predict_listed(BulkOptions(str(photos), str(tmp_path / "there"), block=5), Here(source))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    failed = (tmp_path / "there" / "failed.jsonl").read_text().splitlines()
    assert len(failed) == len(REFUSED) - 1
