"""upsnet.Client against a server that misbehaves on demand."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import SIZES, photo_of, scene
from tests.upsnet.client.fake_server import FakeServer, refusal
from tests.upsnet.client.fake_server import server as server
from upsnet.contract import METADATA_KEY, MODEL, PHOTO_MODEL
from upsnet.errors import InputError, ServerError
from upsnet.model import Model
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.kserve import MOST_SECONDS
from upsnet.runtimes.triton import TritonPredictor


@pytest.fixture
def client(server: FakeServer) -> Iterator[upsnet.Client]:
    with upsnet.Client(server.url, timeout=20) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of several sizes, one of them turned by its EXIF, one cut off, and a file that is no photo."""
    for index in range(len(SIZES)):
        Image.fromarray(photo_of(scene(index))).save(tmp_path / f"{index}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo_of(scene(0))).save(tmp_path / "turned.jpg", exif=turned)
    return tmp_path


def assert_same(actual: PanopticPrediction, expected: PanopticPrediction) -> None:
    assert actual.ids.dtype == expected.ids.dtype
    np.testing.assert_array_equal(actual.ids, expected.ids)
    assert actual.segments == expected.segments and actual.result.segments == expected.result.segments
    np.testing.assert_array_equal(actual.photo, expected.photo)
    assert actual.to_dict() == expected.to_dict()
    assert np.array_equal(np.asarray(actual.overlay()), np.asarray(expected.overlay()))


def encoded(photo: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


def every_kind(folder: Path) -> list[tuple[Any, str]]:
    """A photo in each form that there is, and the model that answers for it."""
    photo = photo_of(scene(0))
    return [
        (folder / "turned.jpg", PHOTO_MODEL),
        (str(folder / "0.png"), PHOTO_MODEL),
        (encoded(photo), PHOTO_MODEL),
        (bytearray(encoded(photo)), PHOTO_MODEL),
        (io.BytesIO(encoded(photo)), PHOTO_MODEL),
        (photo, MODEL),
        (Image.fromarray(photo), MODEL),
    ]


@pytest.mark.parametrize("photos", [True, False], ids=["with upsnet_photo", "with upsnet alone"])
def test_equals_the_same_network_in_process(folder: Path, photos: bool) -> None:
    running = FakeServer(photos)
    local = Model(running.predictor)
    with upsnet.Client(running.url) as client, upsnet.load(running.url) as model:
        assert client.categories == local.categories and client.manifest == local.manifest == model.manifest
        for photo, expected_model in every_kind(folder):
            for remote in (client, model):
                running.asked.clear()
                assert_same(remote.predict(photo), local.predict(photo))
                assert [name for name, _ in running.asked] == [expected_model if photos else MODEL]
    running.stop()


def test_a_server_that_does_not_tell_is_told(tmp_path: Path) -> None:
    """A repository of somebody else's making, without the parameter of the configuration."""
    running = FakeServer(photos=False, tells=False)
    running.predictor.manifest.save(tmp_path / "manifest.json")
    for connect in (upsnet.load, upsnet.Client):
        with pytest.raises(InputError, match=f"does not tell the categories of upsnet .*{METADATA_KEY}"):
            connect(running.url)
    with upsnet.load(running.url, manifest=tmp_path / "manifest.json") as model:
        assert model.predict(photo_of(scene(0))).describe() == "1 dog, 2 cat, sky, grass"
    assert TritonPredictor(running.url, manifest=running.predictor.manifest).manifest == running.predictor.manifest
    running.stop()


def test_a_list_and_a_stream_are_in_order(client: upsnet.Client, server: FakeServer, folder: Path) -> None:
    local = Model(server.predictor)
    paths = sorted(folder.iterdir())
    expected = [local.predict(path) for path in paths]
    for actual, wanted in zip(client.predict(paths), expected, strict=True):
        assert_same(actual, wanted)
    for source in (folder, f"{folder}/*", iter(paths)):
        streamed = list(client.stream(source, concurrency=3))
        assert [path for path, _ in streamed] == [str(path) for path in paths]
        for (_, actual), wanted in zip(streamed, expected, strict=True):
            assert_same(actual, wanted)


def test_a_video_comes_frame_by_frame(client: upsnet.Client, server: FakeServer, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    from upsnet.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", Fraction(5)) as writer:
        for _ in range(4):
            writer.add(photo_of(scene(0)))
    found = list(client.stream(tmp_path, concurrency=2))
    expected = list(Model(server.predictor).stream(tmp_path))
    assert [path for path, _ in found] == [f"{tmp_path}/clip.mp4, frame {number}" for number in (1, 2, 3, 4)]
    for (_, actual), wanted in zip(found, expected, strict=True):
        assert_same(actual, wanted)
        assert actual.name == wanted.name


def test_the_photo_is_read_when_it_is_asked_for(client: upsnet.Client, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo_of(scene(0))).save(path)
    prediction, other = client.predict([path, path])
    path.unlink()
    assert prediction.segments and prediction.describe()
    with pytest.raises(InputError, match=f"^{path}: no such file$"):
        prediction.overlay()
    Image.fromarray(photo_of(scene(1))).save(path)
    with pytest.raises(InputError, match=f"^{path}: it has changed since it was predicted; predict it again$"):
        other.overlay()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_stream_holds_few_photos_and_asks_for_few(server: FakeServer, concurrency: int) -> None:
    taken, given = 0, 0

    def camera() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            assert taken - given <= max(1, 2 * concurrency - 1)
            yield encoded(photo_of(scene(0)))

    with upsnet.Client(server.url) as client:
        for _ in client.stream(camera(), concurrency=concurrency):
            given += 1
    assert given == 30 and server.most_at_once <= concurrency


def test_a_camera_may_use_its_buffer_again(client: upsnet.Client) -> None:
    def camera() -> Iterator[np.ndarray]:
        buffer = np.zeros((48, 64, 3), np.uint8)
        for number in range(10):
            buffer[:] = number
            yield buffer

    assert [each.photo[0, 0, 0] for _, each in client.stream(camera())] == list(range(10))


def test_a_stream_that_is_left_cancels_its_calls(client: upsnet.Client, server: FakeServer) -> None:
    stream = client.stream([encoded(photo_of(scene(0)))] * 20, concurrency=4)
    next(stream)
    server.gate.clear()
    stream.close()  # while calls are open, which nobody answers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upsnet-client")]
    server.gate.set()
    assert client.predict(photo_of(scene(0))).segments


BAD: list[tuple[Any, str]] = [
    ("none.jpg", "^none.jpg: no such file$"),
    ("folder", r"^folder: more than one photo; iterate over client.stream\('folder'\)$"),
    ("notes.txt", "^notes.txt: not a readable image: in no format that Pillow knows$"),
    (b"no photo", "^photo: not a readable image: in no format that Pillow knows$"),
    (b"", "^photo: not a readable image: in no format that Pillow knows$"),
    (np.zeros((4, 4), np.uint8), r"^photo: an array must be uint8 H x W x 3 RGB, not uint8 \[4, 4\]$"),
    (5, "^photo: a photo is a path, the bytes of an image, .* not int$"),
]


@pytest.mark.parametrize(("photo", "message"), BAD)
def test_what_is_no_photo_is_told_as_everywhere(
    client: upsnet.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("notes.txt").write_text("words")
    with pytest.raises(InputError, match=message) as caught:
        client.predict(photo)
    assert not isinstance(caught.value, ServerError)


def test_bad_photos_of_a_stream(client: upsnet.Client, folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "2.png").write_text("words")
    paths = sorted(map(str, folder.iterdir()))
    found = dict(client.stream(folder, errors="yield"))
    assert list(found) == paths
    bad = {Path(path).name: str(error) for path, error in found.items() if isinstance(error, InputError)}
    assert list(bad) == ["1.png", "2.png"]
    assert all(message.startswith(f"{folder}/{name}: not a readable image") for name, message in bad.items())
    seen = []
    with pytest.raises(InputError, match=r"1\.png: not a readable image"):
        for path, _ in client.stream(folder):
            seen.append(path)
    assert seen == paths[:1]


def test_a_source_that_is_not_there_is_the_streams_error(client: upsnet.Client) -> None:
    with pytest.raises(InputError, match=r"^nowhere: no such file$"):
        next(client.stream("nowhere"))
    ((path, error),) = client.stream("nowhere", errors="yield")
    assert path == "nowhere" and str(error) == "nowhere: no such file"


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": 1000}, {"concurrency": "8"}, {"errors": "x"}])
def test_wrong_options_of_a_stream(client: upsnet.Client, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(options))} .*: give"):
        client.stream("photos", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "^timeout 0: give a number of seconds, above 0 and at most 97200000$"),
        ({"timeout": float("inf")}, "^timeout inf: give a number of seconds, above 0 and at most 97200000$"),
        ({"timeout": float("nan")}, "^timeout nan: give"),
        ({"timeout": 1e18}, r"^timeout 1e\+18: give"),
        ({"timeout": "5"}, "^timeout '5': give"),
        ({"retries": 5}, "^retries 5: give 0 to 4"),
        ({"tls": "none.pem"}, "^none.pem: cannot be read as certificates"),
        ({"tls": upsnet.Tls(cert="c.pem")}, "give both, cert and key"),
    ],
)
def test_wrong_options(server: FakeServer, options: dict[str, Any], message: str) -> None:
    for connect in (upsnet.Client, upsnet.AsyncClient, TritonPredictor):
        if "tls" in options and connect is upsnet.AsyncClient:
            continue  # it reads files when it is opened
        with pytest.raises(InputError, match=message):
            connect(server.url, **options)


def test_the_longest_timeout_is_no_short_one(server: FakeServer) -> None:
    """gRPC takes what is far longer as over at once."""
    with upsnet.Client(server.url, timeout=MOST_SECONDS, retries=0) as client:
        assert client.predict(photo_of(scene(0))).segments
    assert server.asked[-1][1] > MOST_SECONDS - 60


# Troubles of the server


@pytest.mark.parametrize(
    "trouble",
    [
        refusal("RESOURCE_EXHAUSTED", "busy: 64 requests wait; retry after 0.01 s", retry_ms=10),
        refusal("UNAVAILABLE", "the server is restarting; retry", retry_ms=10),
    ],
)
def test_what_passes_is_asked_again(client: upsnet.Client, server: FakeServer, trouble: Any) -> None:
    server.troubles = [trouble] * 3
    large = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)  # 2.4 MB; gRPC's own buffer: 256 KB
    assert client.predict(encoded(large)).ids.shape == (900, 900)
    assert len(server.asked) == 4
    assert all(0 < left < 21 for _, left in server.asked)  # the server is told the deadline


def test_retries_end(server: FakeServer) -> None:
    server.troubles = [refusal("RESOURCE_EXHAUSTED", "busy", retry_ms=1)] * 10
    for retries in (0, 2):
        server.asked.clear()
        with upsnet.Client(server.url, retries=retries) as client, pytest.raises(ServerError, match="busy") as caught:
            client.predict(photo_of(scene(0)))
        assert caught.value.status == "RESOURCE_EXHAUSTED" and len(server.asked) == 1 + retries


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "INTERNAL", "PERMISSION_DENIED", "CANCELLED"])
def test_what_does_not_pass_is_asked_once(client: upsnet.Client, server: FakeServer, status: str) -> None:
    server.troubles = [refusal(status, "no")]
    with pytest.raises(InputError, match=r"^the Triton server at 127\.0\.0\.1:\d+ refused the request: no$") as caught:
        client.predict(photo_of(scene(0)))
    assert isinstance(caught.value, ServerError) == (status != "INVALID_ARGUMENT") and len(server.asked) == 1


def test_a_photo_that_the_server_refuses_is_decoded_here(client: upsnet.Client, server: FakeServer) -> None:
    """It lacks the format, say."""
    server.troubles = [refusal("INVALID_ARGUMENT", "photo[0]: in no format that Pillow knows")]
    photo = photo_of(scene(0))
    assert_same(client.predict(encoded(photo)), Model(server.predictor).predict(encoded(photo)))
    assert [model for model, _ in server.asked] == [PHOTO_MODEL, MODEL]


def test_a_file_that_is_too_large_for_the_server_is_decoded_here(
    client: upsnet.Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upsnet.client.conversation.MOST_PHOTO_BYTES", 50)
    photo = encoded(photo_of(scene(0)))
    assert_same(client.predict(photo), Model(server.predictor).predict(photo))
    assert [model for model, _ in server.asked] == [MODEL]


def test_the_deadline_is_the_callers(server: FakeServer) -> None:
    server.gate.clear()
    with (
        upsnet.Client(server.url, timeout=0.3) as client,
        pytest.raises(ServerError, match=r"did not answer within 0\.3 s$") as caught,
    ):
        client.predict(photo_of(scene(0)))
    assert caught.value.status == "DEADLINE_EXCEEDED" and len(server.asked) == 1


def test_a_server_that_fails_ends_a_stream(client: upsnet.Client, server: FakeServer) -> None:
    photos = [photo_of(scene(0))] * 5
    server.troubles = [refusal("INTERNAL", "inference failed")]
    with pytest.raises(ServerError, match="inference failed"):
        list(client.stream(photos, concurrency=1, errors="yield"))


@pytest.mark.parametrize("photos", [True, False], ids=["with upsnet_photo", "with upsnet alone"])
@pytest.mark.parametrize("errors", ["raise", "yield"])
def test_a_server_that_dies_ends_a_stream(photos: bool, errors: Any) -> None:
    running = FakeServer(photos)
    given = [encoded(photo_of(scene(0)))] * 20
    with upsnet.Client(running.url, retries=0) as client:
        stream = client.stream(given, concurrency=1, errors=errors)
        assert not isinstance(next(stream)[1], InputError)
        running.stop()
        gone = f"^no Triton server answers at 127.0.0.1:{running.port}; start one with `make serve`$"
        with pytest.raises(ServerError, match=gone) as caught:
            for _, found in stream:
                assert not isinstance(found, InputError), "no photo is bad"
        assert caught.value.status == "UNAVAILABLE"
        with pytest.raises(ServerError, match=gone):
            client.predict(given[0])
    for connect in (upsnet.Client, TritonPredictor, upsnet.load):
        with pytest.raises(ServerError, match=gone):
            connect(running.url)


def test_a_client_that_is_closed_ends_its_stream(client: upsnet.Client) -> None:
    stream = client.stream([encoded(photo_of(scene(0)))] * 20, concurrency=1, errors="yield")
    next(stream)
    client.close()
    with pytest.raises(ServerError, match="is closed; open another"):
        list(stream)


@pytest.mark.parametrize("model", [PHOTO_MODEL, MODEL])
def test_an_answer_that_contradicts_itself(client: upsnet.Client, server: FakeServer, model: str) -> None:
    whole = "_photo" if model == PHOTO_MODEL else "_tensors"
    answer = getattr(server, whole)

    def short(*given: Any) -> Any:
        found = answer(*given)
        found.raw_output_contents[0] = found.raw_output_contents[0][:-1]
        return found

    setattr(server, whole, short)
    photo = photo_of(scene(0))
    with pytest.raises(ServerError, match=r"^the server's answer cannot be read: cannot reshape"):
        client.predict(encoded(photo) if model == PHOTO_MODEL else photo)


def test_an_answer_that_names_no_segment_is_the_servers_fault(client: upsnet.Client, server: FakeServer) -> None:
    predict = server.predictor.predict
    server.predictor.predict = lambda batch: predict(batch)._replace(  # type: ignore[method-assign]
        segment_count=np.zeros(len(batch.images), np.int32)
    )
    with pytest.raises(ServerError, match=r"answer does not fit fake \(.*segment_count is 0"):
        client.predict(photo_of(scene(0)))


def test_a_server_that_has_gone(client: upsnet.Client, server: FakeServer) -> None:
    assert client.health() == (True, "", "triton 0.0")
    server.ready = False
    assert client.health() == (
        *(False, f"the Triton server at 127.0.0.1:{server.port} refused the request: the server is restarting; retry"),
        "triton 0.0",
    )
    server.stop()
    gone = f"no Triton server answers at 127.0.0.1:{server.port}; start one with `make serve`"
    assert client.health() == (False, gone, "")


def test_a_closed_client(server: FakeServer) -> None:
    client = upsnet.Client(server.url)
    client.close()
    client.close()
    with pytest.raises(
        InputError, match=r"^the connection to the Triton server at 127.0.0.1:\d+ is closed; open another"
    ):
        client.predict(photo_of(scene(0)))
    assert not client.health().ready


def test_a_prediction_can_be_pickled(client: upsnet.Client) -> None:
    prediction = client.predict(encoded(photo_of(scene(0))))
    assert_same(pickle.loads(pickle.dumps(prediction)), prediction)


def test_an_answer_that_does_not_fit(client: upsnet.Client, server: FakeServer) -> None:
    """The server was given another model while the client was connected."""
    manifest = server.predictor.manifest
    table = [each.model_copy(update={"id": 8}) if each.id == 7 else each for each in manifest.categories]
    server.predictor.manifest = manifest.model_copy(update={"categories": table})
    with pytest.raises(ServerError, match=r"answer does not fit fake \(category id 8 is not in the table"):
        client.predict(encoded(photo_of(scene(0))))
