"""upsnet.load with a live server: the address is all that it needs."""

from __future__ import annotations

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
from upsnet.contract import METADATA_KEY
from upsnet.runtimes.triton import TritonPredictor

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient (pip install -e '.[triton]')")
WHITE, BLACK = np.full((50, 70, 3), 255, np.uint8), np.zeros((200, 40, 3), np.uint8)


@pytest.mark.triton
def test_the_server_tells_what_its_model_is(server: TritonServer, exported: Exported) -> None:
    with upsnet.load(f"grpc://{server.url}") as model:
        assert repr(model) == "<Model standin in triton: 1 stuff, 1 things>"
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
    main(photos, f"{tmp_path}/out0", url=server.url, runtime="triton")
    main(photos, f"{tmp_path}/out1", url=f"grpc://{server.url}")
    main(photos, f"{tmp_path}/out2", run=f"grpc://{server.url}")
    texts = [(tmp_path / f"out{number}" / "predictions.json").read_text() for number in range(3)]
    assert len(set(texts)) == 1 and '"file_name": "white.png"' in texts[0]


@pytest.mark.triton
def test_the_example_of_the_python_page(
    server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(WHITE).save("street.jpg")
    (block,) = (block for block in BLOCKS if SERVER in block)
    exec(block.replace(SERVER, server.url), {"upsnet": upsnet})
    assert capsys.readouterr().out == "<PanopticPrediction of street.jpg, 50 x 70: sky>\n"


@pytest.mark.triton
def test_a_server_that_does_not_tell_is_told(exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    """A repository of somebody else's making, without the parameter of the configuration."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    for config in (repository / "upsnet" / "config.pbtxt", *(repository / "upsnet" / "configs").iterdir()):
        text, _, _ = config.read_text().rpartition("\nparameters {")
        assert METADATA_KEY not in text
        config.write_text(text)
    with TritonServer(repository, environment=triton_environment, log=tmp_path / "triton.log") as running:
        with pytest.raises(upsnet.InputError, match=f"does not tell the categories of upsnet .*{METADATA_KEY}"):
            upsnet.load(f"grpc://{running.url}")
        with upsnet.load(f"grpc://{running.url}", manifest=exported.manifest_path) as model:
            assert model.predict(WHITE).describe() == "sky"
        predictor = TritonPredictor(running.url, manifest=exported.manifest)
        assert predictor.manifest == exported.manifest
        predictor.close()
