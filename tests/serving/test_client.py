"""The live server and its client: same answers as ONNX Runtime here, clean errors for everything that is wrong."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import RawPrediction, predict_photos
from upsnet.runtimes.triton import TritonPredictor, check_inputs

grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient (pip install 'upsnet-trt[triton]')")


@pytest.fixture
def predictor(server: TritonServer, exported: Exported) -> Iterator[TritonPredictor]:
    predictor = TritonPredictor(server.url, manifest=exported.manifest)
    yield predictor
    predictor.close()


def assert_same(actual: RawPrediction, expected: RawPrediction) -> None:
    for name, got, want in zip(RawPrediction._fields, actual, expected, strict=True):
        assert got.dtype == want.dtype, name
        np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.triton
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (768, 1344)])
def test_equals_onnxruntime(
    predictor: TritonPredictor,
    exported: Exported,
    batch: int,
    size: tuple[int, int],
) -> None:
    request = make_request(batch, *size)
    assert_same(predictor.predict(request), exported.predict(request))


@pytest.mark.triton
def test_known_answer(predictor: TritonPredictor) -> None:
    images = np.zeros((2, 32, 64, 3), np.uint8)
    images[1, 5, 7] = (128, 0, 0)
    sizes, scales = np.array([[32, 64], [11, 21]], np.int32), np.array([1, 0.5], np.float32)
    answer = predictor.predict(NetworkBatch(images, sizes, scales))
    assert np.argwhere(answer.panoptic).tolist() == [[1, 5, 7]]
    assert answer.segment_count.tolist() == [1, 2]
    assert answer.segments[:, 1, 2].tolist() == [9 + 96, 9 + 16]
    assert answer.segments[:, :, 0].tolist() == [[0, 1, 1], [0, 1, 1]]


@pytest.mark.triton
def test_splits_what_passes_the_servers_batch(predictor: TritonPredictor, exported: Exported) -> None:
    assert predictor.max_batch == 4
    request = make_request(9, 64, 32)
    assert_same(predictor.predict(request), exported.predict(request))


@pytest.mark.triton
def test_strided_input(predictor: TritonPredictor, exported: Exported) -> None:
    request = make_request(2, 32, 64)
    flipped = request.images[:, :, ::-1]
    expected = exported.predict(request._replace(images=np.ascontiguousarray(flipped)))
    assert_same(predictor.predict(request._replace(images=flipped)), expected)


@pytest.mark.triton
def test_many_clients_at_once_get_their_own_answers(server: TritonServer, exported: Exported) -> None:
    requests = [make_request(1 + i % 3, 32 * (1 + i % 2), 64, seed=i) for i in range(24)]

    def ask(share: list[NetworkBatch]) -> list[RawPrediction]:
        predictor = TritonPredictor(server.url, manifest=exported.manifest)
        answers = [predictor.predict(request) for request in share]
        predictor.close()
        return answers

    with ThreadPoolExecutor(6) as pool:
        shares = list(pool.map(ask, [requests[i::6] for i in range(6)]))
    for i, answers in enumerate(shares):
        for request, answer in zip(requests[i::6], answers, strict=True):
            assert_same(answer, exported.predict(request))


@pytest.mark.triton
def test_predict_photos(predictor: TritonPredictor) -> None:
    photos = [np.full((50, 70, 3), 255, np.uint8), np.zeros((200, 40, 3), np.uint8)]
    white, black = predict_photos(predictor, photos)
    assert white.ids.shape == (50, 70)
    assert white.ids.all()
    assert black.ids.shape == (200, 40)
    assert not black.ids.any()


GOOD: dict[str, np.ndarray] = {
    "images": np.full((2, 64, 96, 3), 200, np.uint8),
    "sizes": np.array([[64, 96], [1, 1]], np.int32),
    "scales": np.ones((2, 1), np.float32),
}
KINDS = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "float64": "FP64", "int64": "INT64"}


def ask_raw(server: TritonServer, request: dict[str, np.ndarray]) -> np.ndarray:
    """As any other client would ask: none of our own checks in front."""
    inputs = []
    for name, array in request.items():
        inputs.append(grpc.InferInput(name, list(array.shape), KINDS[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    client = grpc.InferenceServerClient(server.url)
    try:
        return client.infer("upsnet", inputs, client_timeout=20).as_numpy("panoptic")
    finally:
        client.close()


def with_scales(*scales: float) -> np.ndarray:
    return np.array(scales, np.float32)[:, None]


def with_sizes(*sizes: tuple[int, int]) -> np.ndarray:
    return np.array(sizes, np.int32)


BAD: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "images float": ({"images": GOOD["images"].astype(np.float32)}, "images.*UINT8|UINT8.*images"),
    "images int64": ({"images": GOOD["images"].astype(np.int64)}, "images.*UINT8|UINT8.*images"),
    "images rank 3": ({"images": GOOD["images"][0]}, "images"),
    "images rgba": ({"images": np.zeros((2, 64, 96, 4), np.uint8)}, "images"),
    "images batch 5": ({"images": np.zeros((5, 32, 32, 3), np.uint8)}, "batch"),
    "images no rows": ({"images": np.zeros((2, 0, 96, 3), np.uint8)}, "0 x 96: height and width must be non-zero"),
    "images no columns": ({"images": np.zeros((2, 64, 0, 3), np.uint8)}, "64 x 0: height and width must be non-zero"),
    "images empty batch": ({name: array[:0] for name, array in GOOD.items()}, "mismatch"),
    "images not padded": ({"images": np.zeros((2, 65, 96, 3), np.uint8)}, "65 x 96: height and width must be .* 32"),
    "images huge": ({"images": np.zeros((2, 2080, 2048, 3), np.uint8)}, "2080 x 2048: more than 4194304 pixels"),
    "fewer sizes": ({"sizes": with_sizes((64, 96))}, "batch"),
    "fewer scales": ({"scales": with_scales(1)}, "batch"),
    "sizes int64": ({"sizes": GOOD["sizes"].astype(np.int64)}, "sizes.*INT32|INT32.*sizes"),
    "sizes of three": ({"sizes": np.ones((2, 3), np.int32)}, "sizes"),
    "size too high": (
        {"sizes": with_sizes((64, 96), (65, 96))},
        r"sizes\[1\] is 65 x 96: not inside the image of 64 x 96",
    ),
    "size too wide": ({"sizes": with_sizes((64, 97), (1, 1))}, r"sizes\[0\] is 64 x 97: not inside"),
    "size zero": ({"sizes": with_sizes((1, 1), (0, 5))}, r"sizes\[1\] is 0 x 5: not inside"),
    "size negative": ({"sizes": with_sizes((1, -3), (1, 1))}, r"sizes\[0\] is 1 x -3: not inside"),
    "scale zero": ({"scales": with_scales(1, 0)}, r"scales\[1\] is 0.0: not a positive number"),
    "scale negative": ({"scales": with_scales(-1, 1)}, r"scales\[0\] is -1.0: not a positive number"),
    "scale nan": ({"scales": with_scales(1, np.nan)}, r"scales\[1\] is nan: not a positive number"),
    "scale infinite": ({"scales": with_scales(np.inf, 1)}, r"scales\[0\] is inf: not a positive number"),
    "scales without their 1": ({"scales": np.ones(2, np.float32)}, "scales"),
    "fails inside": ({"scales": with_scales(1, 2e6)}, "^inference failed; the server's log has the reason$"),
}


@pytest.mark.triton
@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_clean_line_and_the_server_lives(server: TritonServer, case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(grpc.InferenceServerException) as caught:
        ask_raw(server, GOOD | change)
    text = caught.value.message()
    assert re.search(message, text), text
    assert "\n" not in text.strip()
    assert not re.search(r"/\w+/|\.py|Traceback", text), text
    assert ask_raw(server, GOOD).all()


@pytest.mark.triton
@pytest.mark.parametrize("missing", GOOD)
def test_missing_input(server: TritonServer, missing: str) -> None:
    with pytest.raises(grpc.InferenceServerException, match=r"input"):
        ask_raw(server, {name: array for name, array in GOOD.items() if name != missing})
    assert ask_raw(server, GOOD).all()


@pytest.mark.triton
def test_refusal_is_one_input_error(predictor: TritonPredictor) -> None:
    images, scales = np.zeros((1, 32, 32, 3), np.uint8), np.ones(1, np.float32)
    with pytest.raises(
        InputError, match=r"127.0.0.1:\d+ refused the request: sizes\[0\] is 33 x 1: not inside the image"
    ):
        predictor.predict(NetworkBatch(images, np.array([[33, 1]], np.int32), scales))


@pytest.mark.triton
def test_a_model_that_is_not_there(server: TritonServer, exported: Exported) -> None:
    with pytest.raises(InputError, match=r"runs without the model other \(.+\); see its log$"):
        TritonPredictor(server.url, model="other", manifest=exported.manifest)


@pytest.mark.triton
@pytest.mark.parametrize("name", ["http", "metrics"])
def test_the_servers_other_ports(server: TritonServer, exported: Exported, name: str) -> None:
    url = f"127.0.0.1:{server.ports[name]}"
    kind = {"http": "HTTP"}.get(name, name)
    with pytest.raises(InputError, match=f"^{url} is the {kind} port of a Triton server; give host:port of its gRPC"):
        TritonPredictor(url, manifest=exported.manifest)


def test_grpc_that_is_no_triton(exported: Exported) -> None:
    import grpc as plain_grpc

    other = plain_grpc.server(ThreadPoolExecutor(1))
    url = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    with pytest.raises(InputError, match=f"^a gRPC server that is no Triton answers at {url}; give host:port"):
        TritonPredictor(url, manifest=exported.manifest)
    other.stop(0)


@pytest.mark.triton
def test_manifest_of_another_model(server: TritonServer, exported: Exported) -> None:
    other = exported.manifest.model_copy(update={"name": "other", "max_detections": 5})
    predictor = TritonPredictor(server.url, manifest=other)
    with pytest.raises(
        InputError, match=r"does not fit the manifest of other: segments .* \(1, 6, 7\), and is float32 \(1, 3, 7\)"
    ):
        predictor.predict(make_request(1, 32, 32))
    predictor.close()


def test_nothing_there(exported: Exported) -> None:
    with socket.socket() as taken:  # bound and not listening: refuses connections, and nobody else can take it
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^no Triton server answers at {url}; start one with `make serve`$"):
            TritonPredictor(url, manifest=exported.manifest, timeout=5)


def test_silence_ends_at_the_timeout(exported: Exported) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=url):
            TritonPredictor(url, manifest=exported.manifest, timeout=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": np.zeros((2, 32, 32, 3), np.float32)},
            "images should be uint8 B x H x W x 3.* is float32 2 x 32 x 32 x 3",
        ),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, "images should be uint8 .* is uint8 32 x 32 x 3"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8)}, "images should be .* is uint8 2 x 3 x 32 x 32"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8)}, "images should be .* is uint8 0 x 32 x 32 x 3"),
        ({"sizes": np.ones((2, 2), np.int64)}, "sizes should be int32 2 x 2, and is int64 2 x 2"),
        ({"sizes": np.ones((3, 2), np.int32)}, "sizes should be int32 2 x 2, and is int32 3 x 2"),
        ({"scales": np.ones(2)}, "scales should be float32 2, and is float64 2"),
        ({"scales": np.ones((2, 1), np.float32)}, "scales should be float32 2, and is float32 2 x 1"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, np.ndarray], message: str) -> None:
    good = NetworkBatch(np.zeros((2, 32, 32, 3), np.uint8), np.ones((2, 2), np.int32), np.ones(2, np.float32))
    check_inputs(good)
    with pytest.raises(InputError, match=message):
        check_inputs(good._replace(**change))
