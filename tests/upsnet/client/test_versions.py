"""Clients of a server that has several versions of its model, and that changes the one in service under them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import FakePredictor, photo_of, scene
from tests.upsnet.client.fake_server import FakeServer
from tests.upsnet.client.fake_server import server as server
from upsnet.errors import InputError, ServerError
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.runtimes.open import open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.triton import TritonPredictor

PHOTO = photo_of(scene(0))
OLD, NEW = "1 dog, 2 cat, sky, grass", "1 Katze, 2 Hund, sky, grass"


class Network(FakePredictor):
    """Keeps the shapes of what it is asked. classes: others, at the same places."""

    def __init__(self, short_side: int = 48, classes: bool = False) -> None:
        super().__init__("fake")
        names = {"dog": "Katze", "cat": "Hund"} if classes else {}
        categories = [
            each.model_copy(update={"name": names.get(each.name, each.name), "id": each.id + 7 * classes})
            for each in self.manifest.categories
        ]
        rule = ResizeRule(short_side=short_side, max_side=64)
        self.manifest = self.manifest.model_copy(update={"categories": categories, "resize": rule})
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, batch: NetworkBatch) -> Any:
        self.shapes.append(batch.images.shape[1:3])
        return super().predict(batch)

    @property
    def fitting(self) -> tuple[int, int]:
        """The shape in which it wants PHOTO."""
        rule = self.manifest.resize
        return rule.padded_size(*rule.network_size(*PHOTO.shape[:2]))


@pytest.fixture
def pair(server: FakeServer) -> FakeServer:
    """Version 1 is in service, and version 2, of other classes and another size, may be named."""
    server.predictor, server.version = Network(), "1"
    server.others["2"] = Network(32, classes=True)
    return server


def switch(server: FakeServer, version: str) -> None:
    with server.lock:
        server.others[server.version] = server.predictor
        server.predictor, server.version = server.others.pop(version), version


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("photo", [PHOTO, encoded()], ids=["pixels", "a file"])
def test_a_client_follows_and_its_predictions_have_the_classes_of_the_version_that_made_them(
    pair: FakeServer, photo: Any
) -> None:
    old, new = Network(), Network(32, classes=True)
    pair.predictor, pair.others["2"] = old, new
    with upsnet.Client(pair.url) as client:
        before = client.predict(photo)
        switch(pair, "2")
        after = client.predict(photo)
        again = client.predict(photo)
        assert (before.describe(), after.describe(), again.describe()) == (OLD, NEW, NEW)
        assert client.manifest == new.manifest and before.categories != client.categories == after.categories
        assert new.shapes[-1] == new.fitting != old.fitting
        assert len(pair.asked) == 4, "one was asked again"
        switch(pair, "1")
        assert client.predict(photo).describe() == OLD


def test_a_client_of_asyncio_follows_too(pair: FakeServer) -> None:
    async def main() -> list[str]:
        async with upsnet.AsyncClient(pair.url) as client:
            found = [await client.predict(PHOTO)]
            switch(pair, "2")
            found += await client.predict([PHOTO] * 5)
            return [prediction.describe() for prediction in found]

    assert asyncio.run(main()) == [OLD] + [NEW] * 5


def test_a_stream_goes_on_through_a_switch(pair: FakeServer) -> None:
    def photos() -> Any:
        for index in range(12):
            if index == 6:
                switch(pair, "2")
            yield PHOTO

    with upsnet.Client(pair.url) as client:
        told = [prediction.describe() for _, prediction in client.stream(photos(), concurrency=3)]
    assert set(told) == {OLD, NEW} and told[6:] == [NEW] * 6


@pytest.mark.parametrize(
    "opened",
    [
        lambda url: upsnet.Client(url, version=2),
        lambda url: upsnet.load(url, version=2),
    ],
    ids=["Client", "load"],
)
def test_a_version_that_is_named_is_asked_alone(pair: FakeServer, opened: Callable[[str], Any]) -> None:
    new = pair.others["2"]
    with opened(pair.url) as model:
        assert model.manifest == new.manifest
        assert model.predict(PHOTO).describe() == NEW
        assert model.predict(encoded()).describe() == NEW
        switch(pair, "2")
        assert model.predict(PHOTO).describe() == NEW
        switch(pair, "1")
        del pair.others["2"]
        with pytest.raises(ServerError, match=r"\(version 2\) refused the request: there is no version 2; there is 1"):
            model.predict(PHOTO)
    assert set(pair.asked_versions) == {"2"}


def test_asyncio_names_a_version(pair: FakeServer) -> None:
    async def main() -> str:
        async with upsnet.AsyncClient(pair.url, version=2) as client:
            return (await client.predict(PHOTO)).describe()

    assert asyncio.run(main()) == NEW


def test_a_version_that_is_not_there(pair: FakeServer) -> None:
    words = r"\(version 3\) runs without the model upsnet \(there is no version 3; there is 1\)"
    with pytest.raises(ServerError, match=words):
        upsnet.Client(pair.url, version=3)


@pytest.mark.parametrize("version", [0, -1, "two", 1.5, "", 10**9, True])
def test_what_is_no_version(server: FakeServer, version: Any) -> None:
    with pytest.raises(InputError, match=r"^version .*: give a number from 1 on$"):
        upsnet.Client(server.url, version=version)


def test_a_model_goes_on_with_a_version_of_the_same_classes(pair: FakeServer) -> None:
    pair.others["2"] = new = Network(32)
    with upsnet.load(pair.url) as model:
        assert model.predict(PHOTO).describe() == OLD
        switch(pair, "2")
        assert model.predict(PHOTO).describe() == OLD
        assert new.shapes[-1] == new.fitting


def test_a_model_ends_where_the_classes_are_others(pair: FakeServer) -> None:
    """Who has a Model may have kept its table of classes."""
    with upsnet.load(pair.url) as model:
        assert model.predict(PHOTO).describe() == OLD
        switch(pair, "2")
        words = (
            r"serves version 2 of upsnet(_photo)? now, and not 1: its class table is another; open it again, or name"
        )
        for photo in (PHOTO, encoded()):
            with pytest.raises(ServerError, match=words):
                model.predict(photo)


@pytest.mark.parametrize(
    ("network", "differs"),
    [(Network(), ""), (Network(32), "its network size"), (Network(classes=True), "its class table")],
    ids=["the same", "another size", "other classes"],
)
def test_a_predictor_goes_on_where_tensors_mean_the_same(pair: FakeServer, network: Network, differs: str) -> None:
    pair.others["2"] = network
    batch = NetworkBatch(np.zeros((9, 64, 64, 3), np.uint8), np.full((9, 2), 64, np.int32), np.ones(9, np.float32))
    with closing(TritonPredictor(pair.url)) as predictor:
        expected = predictor.predict(batch)
        switch(pair, "2")
        if differs:
            with pytest.raises(ServerError, match=f"{differs} is another; open it again, or name a version"):
                predictor.predict(batch)
        else:
            for ours, theirs in zip(predictor.predict(batch), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            assert predictor.served.version == "2"


def test_versions_are_of_servers(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="version is no option of the runtime onnxruntime"):
        upsnet.load(tmp_path, version=2)
    with pytest.raises(InputError, match=r"^version 2: a server has versions, the runtime onnxruntime has none"):
        open_runtime(RuntimeOptions(tmp_path, version=2))
