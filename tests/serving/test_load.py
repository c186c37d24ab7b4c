"""upsnet.load with a live server: the address is all that it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upsnet
from serving.repository import deploy
from serving.server import TritonServer
from tests.serving.conftest import Exported
from tests.test_python_page import BLOCKS, SERVER
from upsnet.command_line.predict import main
from upsnet.runtimes.predictor import predict_photos

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient (pip install -e '.[triton]')")
WHITE, BLACK = np.full((50, 70, 3), 255, np.uint8), np.zeros((200, 40, 3), np.uint8)


@pytest.mark.triton
def test_the_server_tells_what_its_model_is(server: TritonServer, exported: Exported) -> None:
    with upsnet.load(f"grpc://{server.url}") as model:
        assert repr(model) == "<Model standin in triton: 1 stuff, 1 things; kernels: the server's>"
        assert model.manifest == exported.manifest and model.categories.names == ["sky", "cat"]
        white, black = model.predict([WHITE, BLACK])
        assert white.ids.shape == (50, 70) and white.ids.all() and white.describe() == "sky"
        assert black.ids.shape == (200, 40) and not black.ids.any() and black.segments == ()
        streamed = list(model.stream([WHITE] * 3, batch_size=2))
        assert all(np.array_equal(each.ids, white.ids) for each in streamed) and len(streamed) == 3


@pytest.mark.triton
def test_predict_command_with_a_server(server: TritonServer, tmp_path: Path) -> None:
    Image.fromarray(WHITE).save(tmp_path / "white.png")
    photos = [f"{tmp_path}/white.png"]
    main(photos=photos, out=f"{tmp_path}/out0", url=server.url, runtime="triton")
    main(photos=photos, out=f"{tmp_path}/out1", url=f"grpc://{server.url}")
    main(photos=photos, out=f"{tmp_path}/out2", run=f"grpc://{server.url}")
    texts = [(tmp_path / f"out{number}" / "predictions.json").read_text() for number in range(3)]
    assert len(set(texts)) == 1 and '"file_name": "white.png"' in texts[0]


@pytest.mark.triton
def test_the_examples_of_the_python_page(
    server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("holiday").mkdir()
    for name in ("street.jpg", "beach.png", "holiday/a.png"):
        Image.fromarray(WHITE).save(name)
    Path("holiday/b.png").write_text("words")
    load, client, client_of_asyncio = (block.replace(SERVER, server.url) for block in BLOCKS if SERVER in block)
    exec(load, {"upsnet": upsnet})
    street = "<PanopticPrediction of street.jpg, 50 x 70: sky>\n"
    assert capsys.readouterr().out == street
    damaged = "holiday/b.png: not a readable image: in no format that Pillow knows"
    for block in (client, client_of_asyncio):
        with pytest.raises(upsnet.InputError, match=damaged):
            exec(block, {"upsnet": upsnet})
        assert capsys.readouterr().out.endswith("holiday/a.png sky\n")
    Path("holiday/b.png").unlink()
    exec(client, {"upsnet": upsnet})
    ready = "Health(ready=True, reason='', server='triton 2.51.0') ['sky', 'cat']\n"
    assert capsys.readouterr().out == f"holiday/a.png sky\n{ready}"
    exec(client_of_asyncio, {"upsnet": upsnet})
    assert capsys.readouterr().out == f"{street}holiday/a.png sky\n"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Of several sizes and kinds, one of them turned, one larger than gRPC's own 4 MiB as a label map."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        ("a.jpg", (90, 61)),
        ("b.png", (64, 96)),
        ("c.webp", (33, 200)),
        ("d.jpg", (61, 90)),
        ("e.png", (2400, 2000)),
    ]
    for name, (height, width) in kinds:
        pixels = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        image.save(tmp_path / name, exif=turned if name == "d.jpg" else Image.Exif())
    return sorted(tmp_path.iterdir())


def assert_results(found: list[upsnet.PanopticPrediction], exported: Exported, photos: list[Path]) -> None:
    expected = [predict_photos(exported, [upsnet.read_photo(photo)])[0] for photo in photos]  # type: ignore[arg-type]
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual.ids, wanted.ids)
        assert actual.ids.dtype == wanted.ids.dtype and actual.result.segments == wanted.segments


@pytest.mark.triton
def test_the_client_gets_what_the_network_says_in_process(
    server: TritonServer, exported: Exported, photos: list[Path]
) -> None:
    for given in (photos, [photo.read_bytes() for photo in photos], [upsnet.read_photo(photo) for photo in photos]):
        with upsnet.Client(f"grpc://{server.url}") as client:
            assert client.health().ready and client.categories.names == ["sky", "cat"]
            assert_results(client.predict(given), exported, photos)
            assert_results([each for _, each in client.stream(iter(given), concurrency=2)], exported, photos)


@pytest.mark.triton
def test_the_client_of_asyncio(server: TritonServer, exported: Exported, photos: list[Path]) -> None:
    async def main() -> None:
        async with upsnet.AsyncClient(f"grpc://{server.url}") as client:
            assert_results(await client.predict(photos), exported, photos)
            folder = photos[0].parent
            assert_results([each async for _, each in client.stream(folder)], exported, photos)  # type: ignore[misc]
            assert (await client.health()).ready

    asyncio.run(main())


@pytest.mark.triton
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.jpg", b"words", "words.jpg: not a readable image: in no format that Pillow knows$"),
        ("empty.jpg", b"", "empty.jpg: not a readable image: in no format that Pillow knows$"),
        ("cut.png", None, "cut.png: not a readable image: "),
    ],
)
def test_a_photo_that_cannot_be_read_is_told_as_everywhere(
    server: TritonServer, photos: list[Path], name: str, content: bytes | None, message: str
) -> None:
    path = photos[0].parent / name
    path.write_bytes(photos[1].read_bytes()[:300] if content is None else content)
    with upsnet.Client(f"grpc://{server.url}") as client, pytest.raises(upsnet.InputError, match=message) as caught:
        client.predict(path)
    with pytest.raises(upsnet.InputError) as here:
        upsnet.read_photo(path)
    assert str(caught.value) == str(here.value)


@pytest.mark.triton
def test_a_server_that_was_started_in_another_folder(
    exported: Exported, triton_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models import upsnet wherever that is, and not a folder of this name that lies there."""
    monkeypatch.chdir(tmp_path)
    Path("upsnet").mkdir()
    Path("upsnet/__init__.py").write_text("raise SystemExit(1)")
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    with TritonServer(repository, environment=triton_environment) as running, upsnet.Client(running.url) as client:
        assert client.predict(WHITE).describe() == "sky"
