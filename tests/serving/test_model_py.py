"""The two models' own logic, without a server: who is answered when others fail, and with what."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.agreement import assert_same_segments
from tests.serving.conftest import POISON, Exported, make_request
from tests.serving.fake_triton import FakeError, MetricFamily, Request, Response, Tensor, Triton, arguments
from tests.upsnet.kernels.test_choice import make_library
from tests.upsnet.test_photos import EPS
from upsnet.contract import LABELS, LIBRARY, METADATA_KEY, OVERLAY, PHOTO, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.kernels.choice import kernel_abi
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.predictor import RawPrediction


@pytest.fixture
def triton() -> Triton:
    return Triton()


class Network:
    """The stand-in in place of the session, with the sizes of the batches that it ran."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.batches: list[tuple[int, ...]] = []
        self.shrunk: list[bool] = []

    def run(self, names: list[str], feeds: dict[str, np.ndarray], options: object = None) -> list[np.ndarray]:
        self.batches.append(feeds["images"].shape[:3])
        self.shrunk.append(options is not None)
        return self.exported.session.run(names, feeds)


@pytest.fixture
def network(exported: Exported) -> Network:
    return Network(exported)


@pytest.fixture
def model(triton: Triton, network: Network, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`upsnet`, as after `initialize`."""
    module = triton.load("upsnet", monkeypatch)
    made = module.TritonPythonModel()
    made.session, made.max_pixels, made.shrinking, made.largest = network, 4 * 64 * 64, object(), 0
    made.counters = module.Counters(triton.module, "upsnet")
    return made


def request(batch: int, height: int, width: int, seed: int = 0, **changes: np.ndarray) -> Request:
    return Request(make_request(batch, height, width, seed)._asdict() | changes)


def check(exported: Exported, asked: Request, response: Response) -> None:
    assert not response.has_error()
    for name, expected in exported.predict(NetworkBatch(**asked.tensors))._asdict().items():
        np.testing.assert_array_equal(response.outputs[name], expected)


def test_requests_of_one_size_run_as_one_batch(model: Any, network: Network, exported: Exported) -> None:
    requests = [request(*shape, seed=i) for i, shape in enumerate([(1, 32, 64), (2, 64, 64), (3, 32, 64)])]
    responses = model.execute(requests)
    assert network.batches == [(4, 32, 64), (2, 64, 64)]
    for asked, response in zip(requests, responses, strict=True):
        check(exported, asked, response)
    counted = MetricFamily.counted
    assert counted["upsnet_executed_batches_total", "upsnet", "4"] == 1
    assert counted["upsnet_executed_batches_total", "upsnet", "2"] == 1
    assert counted["upsnet_stage_milliseconds_total", "upsnet", "network"] > 0


def test_a_batch_holds_no_more_pixels_than_a_request_may(model: Any, network: Network, exported: Exported) -> None:
    requests = [request(count, 64, 64, seed=count) for count in (3, 2, 2, 4, 5)]
    *good, large = model.execute(requests)
    assert network.batches == [(3, 64, 64), (4, 64, 64), (4, 64, 64)]
    for asked, response in zip(requests, good, strict=False):
        check(exported, asked, response)
    assert large.refused == ("INVALID_ARG", "images are 5 x 64 x 64: more than 16384 pixels")


def test_the_memory_of_a_large_batch_goes_back_with_the_next_small_one(model: Any, network: Network) -> None:
    for shape in ((4, 64, 64), (1, 64, 64), (1, 32, 32), (1, 32, 32), (4, 64, 64), (2, 32, 32)):
        model.execute([request(*shape)])
    assert network.shrunk == [False, False, True, False, False, True]


def test_a_poisoned_request_fails_alone_and_no_two_share_a_response(
    model: Any, network: Network, exported: Exported, triton: Triton
) -> None:
    """Triton ends with SIGSEGV where two requests get one and the same response object."""
    requests = [request(1, 32, 32, seed=i) for i in range(4)]
    for index in (1, 3):
        requests[index].tensors["scales"][0] = 2 * POISON
    responses = model.execute(requests)
    assert network.batches == [(4, 32, 32)] + [(1, 32, 32)] * 4
    assert len({id(response) for response in responses}) == 4
    assert len({id(response.error()) for response in responses if response.has_error()}) == 2
    for index in (0, 2):
        check(exported, requests[index], responses[index])
    for index in (1, 3):
        assert responses[index].refused == ("INTERNAL", "inference failed; the server's log has the reason")
    assert "inference of 4 requests failed" in triton.log[0] and len(triton.log) == 3


def test_memory_that_is_short_for_the_batch_is_enough_for_each(
    model: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(arrays: object) -> np.ndarray:
        raise MemoryError("no room")

    requests = [request(1, 32, 32, seed=i) for i in range(2)]
    monkeypatch.setattr(np, "concatenate", short)
    for asked, response in zip(requests, model.execute(requests), strict=True):
        check(exported, asked, response)


def test_nothing_is_computed_for_a_caller_that_has_gone(model: Any, network: Network, exported: Exported) -> None:
    gone, waits = request(1, 32, 32)._replace(cancelled=True), request(2, 32, 32)
    responses = model.execute([gone, waits])
    assert responses[0].refused == ("CANCELLED", "the caller has gone")
    check(exported, waits, responses[1])
    assert network.batches == [(2, 32, 32)]


def test_numpy_is_judged_by_what_comes_back(
    triton: Triton, exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = triton.load("upsnet", monkeypatch)
    monkeypatch.setattr(module.np, "__version__", "2.4.6")
    monkeypatch.setattr(module, "__file__", str(exported.model.with_name("model.py")))
    settings = arguments(max_pixels="4096", threads="1", device="auto")
    made = module.TritonPythonModel()
    made.initialize(settings)  # a Triton that can read numpy 2
    ran = f"upsnet: runs on the CPU with 1 threads, ONNX Runtime {module.ort.__version__}"
    assert triton.log == [f"{ran}, kernels: function bodies (no {LIBRARY} was deployed)"]
    check(exported, asked := request(1, 32, 64), made.execute([asked])[0])
    monkeypatch.setattr(Tensor, "from_dlpack", lambda name, other: Tensor(name, other.array * 0))
    with pytest.raises(RuntimeError, match=r"cannot read the arrays of numpy 2.4.6; take 1.26"):
        module.TritonPythonModel().initialize(settings)


def test_the_gpu_is_taken_where_it_works(triton: Triton, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    module = triton.load("upsnet", monkeypatch)
    made = module.TritonPythonModel()
    made.threads = 1
    broken: list[list[str]] = []

    def session(model: Path, options: object, providers: list[str | tuple[str, dict[str, str]]]) -> SimpleNamespace:
        named = dict(each if isinstance(each, tuple) else (each, {}) for each in providers)
        assert named.get(module.CUDA, {"use_tf32": "0"}) == {"use_tf32": "0"}
        taken = [each for each in named if each != module.CUDA or not broken]
        return SimpleNamespace(get_providers=lambda: taken)

    def opened(device: str) -> str:
        return made.open(exported.model, device).get_providers()[0]

    monkeypatch.setattr(module.ort, "InferenceSession", session)
    with pytest.raises(FakeError, match=r"device is cuda, but ONNX Runtime finds no GPU that works"):
        opened("cuda")
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: [module.CUDA, module.CPU])
    assert [opened(device) for device in ("auto", "cuda", "cpu")] == [module.CUDA, module.CUDA, module.CPU]
    broken.append([])
    assert opened("auto") == module.CPU
    with pytest.raises(FakeError, match=r"finds no GPU that works"):
        opened("cuda")


@pytest.mark.parametrize("kernels", ["deployed", "damaged", "off"])
def test_the_kernels_that_were_deployed(
    triton: Triton, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernels: str
) -> None:
    """Beside the model, as `upsnet engine` left them. Without them it answers the same."""
    for name in ("model.onnx", LIBRARY):
        shutil.copy(tiny_run / "engine" / name, tmp_path)
    if kernels == "damaged":
        os.truncate(tmp_path / LIBRARY, 100)
    monkeypatch.setenv("UPSNET_KERNELS", "off" if kernels == "off" else "auto")
    module = triton.load("upsnet", monkeypatch)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "model.py"))
    made = module.TritonPythonModel()
    made.initialize(arguments(max_pixels="32768", threads="1", device="cpu"))
    *warned, ran = triton.log
    expected = {
        "deployed": LIBRARY,
        "damaged": f"function bodies ({LIBRARY} cannot be used, see above)",
        "off": "function bodies (UPSNET_KERNELS=off)",
    }
    assert ran.endswith(f", kernels: {expected[kernels]}")
    assert len(warned) == (kernels == "damaged")
    assert all(line.startswith(f"upsnet: {LIBRARY} cannot be used: ") for line in warned)
    asked = request(2, 96, 128)
    (answer,) = made.execute([asked])
    right = OnnxRuntimePredictor(tiny_run / "model.onnx", 1, kernels="off").predict(NetworkBatch(**asked.tensors))
    assert_same_segments(RawPrediction(**answer.outputs), right)


@pytest.mark.parametrize(
    ("abi", "left", "said"),
    [
        (99, None, rf"{LIBRARY} is of another version: its kernel ABI is 99, and this package's {kernel_abi()};"),
        (None, None, rf"{LIBRARY} is of another version: its kernel ABI is unknown, and this package's"),
        (kernel_abi(), 4096, rf"{LIBRARY} is cut off: 4096 bytes are left of \d+; .* `upsnet engine`"),
    ],
)
def test_kernels_of_another_version_and_those_cut_off_are_not_taken(
    triton: Triton,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    abi: int | None,
    left: int | None,
    said: str,
) -> None:
    monkeypatch.delenv("UPSNET_KERNELS", raising=False)
    library = make_library(tmp_path / f"version{abi}", abi)
    os.truncate(library, left or library.stat().st_size)
    shutil.copy(exported.model, library.with_name("model.onnx"))
    module = triton.load("upsnet", monkeypatch)
    monkeypatch.setattr(module, "__file__", str(library.with_name("model.py")))
    module.TritonPythonModel().initialize(arguments(max_pixels="4096", threads="1", device="cpu"))
    warned, ran = triton.log
    assert re.match(rf"upsnet: {LIBRARY} cannot be used: .*{said}", warned) and "\n" not in warned
    assert ran.endswith(f"kernels: function bodies ({LIBRARY} cannot be used, see above)")


def test_a_word_that_is_no_choice_of_kernels_is_refused(
    triton: Triton, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = triton.load("upsnet", monkeypatch)
    monkeypatch.setattr(module, "__file__", str(exported.model.with_name("model.py")))
    monkeypatch.setenv("UPSNET_KERNELS", "OFF")
    with pytest.raises(FakeError, match=r"^UPSNET_KERNELS=OFF: use auto or off$"):
        module.TritonPythonModel().initialize(arguments(max_pixels="4096", threads="1", device="cpu"))


def test_a_missing_package_is_named(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upsnet.stub", None)
    for name, packages in (("upsnet", "onnxruntime and upsnet-trt"), ("upsnet_photo", "upsnet-trt")):
        with pytest.raises(
            ImportError, match=rf"the model {name} needs the packages? {packages} in the server's Python"
        ):
            triton.load(name, monkeypatch)


PhotoModel = Callable[[list[Request]], list[Response]]


@pytest.fixture
def photos(triton: Triton, exported: Exported, network: Network, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`upsnet_photo`, whose network is the stand-in. A scale above POISON makes it fail."""

    def answer(model_name: str, requested_output_names: list[str], inputs: list[Tensor], **_: object) -> Response:
        feeds = {each.name: each.array for each in inputs}
        assert model_name == "upsnet" and feeds["scales"].shape == (len(feeds["images"]), 1)
        try:
            outputs = network.run(requested_output_names, feeds | {"scales": feeds["scales"][:, 0]})
        except Exception:
            return Response(error=FakeError("inference failed; the server's log has the reason\nand more"))
        outputs[2] = outputs[2][:, None]
        return Response([Tensor(*pair) for pair in zip(requested_output_names, outputs, strict=True)])

    triton.network = answer
    made = triton.load("upsnet_photo", monkeypatch).TritonPythonModel()
    made.initialize(arguments(max_photo_bytes="100000", **{METADATA_KEY: exported.manifest.model_dump_json()}))
    return made


def encoded(height: int, width: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def ask(*contents: bytes, wanted: tuple[str, ...] = (LABELS,), cancelled: bool = False) -> Request:
    return Request({PHOTO: np.array([[content] for content in contents], object)}, wanted, cancelled)


def labels(response: Response) -> list[list[list[int]]]:
    assert not response.has_error()
    return response.outputs[LABELS].tolist()


def test_photos_of_one_network_size_go_together_and_answer_as_alone(photos: Any, network: Network) -> None:
    across, upright = [encoded(40, 60, seed) for seed in range(5)], [encoded(60, 40, seed) for seed in range(2)]
    requests = [ask(across[0], upright[0]), ask(across[1]), ask(upright[1]), ask(*across[2:])]
    together = [labels(response) for response in photos.execute(requests)]
    assert network.batches == [(4, 64, 96), (1, 64, 96), (2, 96, 64)], "at most the manifest's 4, across callers"
    alone = [labels(photos.execute([each])[0]) for each in requests]
    assert together == alone


def test_only_what_is_asked_for_is_made(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (response,) = photos.execute([ask(encoded(20, 30), encoded(30, 20), wanted=(SEGMENTS_JSON, PHOTO_SIZES))])
    assert set(response.outputs) == {SEGMENTS_JSON, PHOTO_SIZES}
    assert response.outputs[PHOTO_SIZES].tolist() == [[20, 30], [30, 20]]
    for (content,) in response.outputs[SEGMENTS_JSON]:
        for segment in json.loads(content):
            assert set(segment) == {"id", "category_id", "name", "isthing", "score", "area", "box"}


def test_a_bad_photo_fails_its_own_request(photos: Any) -> None:
    good = encoded(40, 60)
    requests = [
        ask(b"nothing"),
        ask(good),
        ask(good, b""),
        ask(good, cancelled=True),
        ask(good, bytes(100_001)),
        ask(encoded(1, 3), encoded(3, 1)),
    ]
    responses = photos.execute(requests)
    assert len({id(response) for response in responses}) == len(responses)
    assert labels(responses[1]) == labels(photos.execute([ask(good)])[0])
    assert np.shape(labels(responses[5])) == (2, 3, 3)
    assert [responses[index].refused for index in (0, 2, 3, 4)] == [
        ("INVALID_ARG", "photo: not a readable image: in no format that Pillow knows"),
        ("INVALID_ARG", "photo 2 of 2: not a readable image: in no format that Pillow knows"),
        ("CANCELLED", "the caller has gone"),
        ("INVALID_ARG", "photo 2 of 2: 100001 bytes are over the limit of 100000"),
    ]


def test_a_photo_that_the_network_fails_on_leaves_its_neighbours(
    photos: Any, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in fails on a scale that no photo has; here the photo of one certain width has it."""
    module = sys.modules["upsnet_photo_model"]
    to_network = vars(module)["to_network"]

    def poisoned(photo: np.ndarray, rule: Any) -> Any:
        net = to_network(photo, rule)
        return net._replace(scale=2 * POISON) if photo.shape[1] == 59 else net

    monkeypatch.setattr(module, "to_network", poisoned)
    good, bad = encoded(40, 60), encoded(40, 59)
    responses = photos.execute([ask(good), ask(bad), ask(good, bad), ask(good)])
    failed = "inference failed; the server's log has the reason"
    assert [responses[index].refused for index in (1, 2)] == [
        ("INTERNAL", f"photo: {failed}"),
        ("INTERNAL", f"photo 2 of 2: {failed}"),
    ]
    assert network.batches == [(4, 64, 96)] + [(1, 64, 96)] * 5
    assert labels(responses[0]) == labels(responses[3]) == labels(photos.execute([ask(good)])[0])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Model upsnet - Error when running inference: Server not ready", FakeError.INTERNAL),
        ("Stub process 'upsnet_0_1' is not healthy.", FakeError.INTERNAL),
        ("going", FakeError.UNAVAILABLE),
    ],
)
def test_a_server_that_restarts_is_unavailable_and_no_fault_of_a_photo(
    photos: Any, triton: Triton, words: str, code: str
) -> None:
    triton.network = lambda **_: Response(error=FakeError(words, code))
    good = encoded(40, 60)
    for response in photos.execute([ask(good), ask(good, good)]):
        assert response.refused == ("UNAVAILABLE", "the server stops or restarts; retry")


def test_any_other_fault_of_the_network_keeps_its_status(photos: Any, triton: Triton) -> None:
    triton.network = lambda **_: Response(error=FakeError("images are 9 x 9", FakeError.INVALID_ARG))
    (response,) = photos.execute([ask(encoded(40, 60))])
    assert response.refused == ("INVALID_ARG", "photo: images are 9 x 9")


def test_postscript_is_refused_as_in_process(photos: Any) -> None:
    with pytest.raises(InputError) as expected:
        read_photo(EPS, "photo")
    (response,) = photos.execute([ask(EPS)])
    assert response.refused == ("INVALID_ARG", str(expected.value))


def test_what_nobody_foresaw_fails_one_request_and_says_nothing_of_the_server(
    photos: Any, triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: object, scores: bool = True) -> None:
        raise MemoryError("/secret/path: no room")

    monkeypatch.setattr(upsnet.PanopticPrediction, "overlay", short)
    good = encoded(40, 60)
    failed, fine = photos.execute([ask(good, wanted=(OVERLAY,)), ask(good)])
    assert failed.refused == ("INTERNAL", "the photo model failed; the server's log has the reason")
    assert triton.log == ["upsnet_photo: MemoryError: /secret/path: no room"]
    assert labels(fine)
