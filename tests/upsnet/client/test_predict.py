"""`upsnet predict` with a server: the same files, byte for byte, as from the same network in process."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SIZES, photo_of, scene
from tests.upsnet.client.fake_server import FakeServer, refusal
from tests.upsnet.client.fake_server import server as server
from upsnet.command_line import predict
from upsnet.contract import PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.video import VideoWriter


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for index in range(len(SIZES) * 3):
        path = folder / ("sub" if index % 2 else ".") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo_of(scene(index % len(SIZES)))).save(path)
    return folder


def test_same_files(server: FakeServer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    with VideoWriter(album / "a.mp4", Fraction(10)) as writer:
        for shade in range(3):
            writer.add(np.full((36, 40, 3), 60 * shade, np.uint8))
    monkeypatch.setattr(server.gate, "wait", lambda _: server.most_at_once == 4)  # until four are asked for
    predict.main(photos=[str(album)], out=str(tmp_path / "remote"), url=server.url)
    assert {model for model, _ in server.asked} == {PHOTO_MODEL, "upsnet"} and server.most_at_once == 4
    monkeypatch.setattr(predict, "open_runtime", lambda _: server.predictor)
    predict.main(photos=[str(album)], out=str(tmp_path / "local"))
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_a_failure_midway_leaves_nothing(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.troubles = [lambda _: None] * 6 + [refusal("INTERNAL", "inference failed")]
    with pytest.raises(InputError, match="refused the request: inference failed"):
        predict.main(photos=[str(album)], out=str(tmp_path / "out"), url=server.url)
    assert not (tmp_path / "out").exists()
