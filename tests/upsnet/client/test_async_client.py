"""upsnet.AsyncClient: what upsnet.Client does, and that cancelling a task cancels its call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upsnet
from tests.conftest import SIZES, photo_of, scene
from tests.upsnet.client.fake_server import FakeServer, refusal
from tests.upsnet.client.fake_server import server as server
from tests.upsnet.client.test_client import assert_same, encoded, every_kind
from tests.upsnet.client.test_client import folder as folder
from upsnet.client.client import CONCURRENCY
from upsnet.errors import InputError, ServerError
from upsnet.model import Model


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_equals_the_same_network_in_process(server: FakeServer, folder: Path) -> None:
    local = Model(server.predictor)

    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            assert client.categories == local.categories and client.manifest == local.manifest
            assert repr(client) == f"<AsyncClient of 127.0.0.1:{server.port}: fake>"
            for photo, _ in every_kind(folder):
                assert_same(await client.predict(photo), local.predict(photo))
            paths = sorted(folder.iterdir())
            expected = local.predict(paths)
            for actual, wanted in zip(await client.predict(paths), expected, strict=True):
                assert_same(actual, wanted)
            found = [each async for each in client.stream(folder, concurrency=3)]
            assert [path for path, _ in found] == [str(path) for path in paths]
            for (_, actual), wanted in zip(found, expected, strict=True):
                assert_same(actual, wanted)

    run(main())


def test_several_are_asked_for_at_once(server: FakeServer) -> None:
    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            server.gate.clear()
            asking = asyncio.create_task(client.predict([encoded(photo_of(scene(0)))] * 20))
            while server.at_once < CONCURRENCY:
                await asyncio.sleep(0.01)
            server.gate.set()
            assert len(await asking) == 20

    run(main())
    assert server.most_at_once == CONCURRENCY


def test_many_tasks_share_a_client(server: FakeServer) -> None:
    photos = [photo_of(scene(index % len(SIZES))) for index in range(24)]
    expected = Model(server.predictor).predict(photos[: len(SIZES)])

    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            found = await asyncio.gather(*(client.predict(encoded(photo)) for photo in photos))
            for index, actual in enumerate(found):
                np.testing.assert_array_equal(actual.ids, expected[index % len(SIZES)].ids)

    run(main())


def test_a_cancelled_task_cancels_its_call(server: FakeServer) -> None:
    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            server.gate.clear()
            task = asyncio.create_task(client.predict(photo_of(scene(0))))
            while not server.at_once:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.at_once:  # the server sees that nobody waits; the gate is closed
                await asyncio.sleep(0.01)

    run(main())


def test_a_stream_that_is_left_cancels_its_calls(server: FakeServer) -> None:
    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            before = asyncio.all_tasks()
            stream = client.stream([encoded(photo_of(scene(0)))] * 20, concurrency=4)
            await anext(stream)
            server.gate.clear()
            await stream.aclose()
            assert asyncio.all_tasks() == before
            while server.at_once:
                await asyncio.sleep(0.01)

    run(main())


def test_errors(server: FakeServer, folder: Path) -> None:
    (folder / "1.png").write_text("words")

    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            with pytest.raises(InputError, match=r"^none\.jpg: no such file$"):
                await client.predict("none.jpg")
            found = [(path, each) async for path, each in client.stream(folder, errors="yield")]
            assert [Path(path).name for path, each in found if isinstance(each, InputError)] == ["1.png"]
            server.troubles = [refusal("RESOURCE_EXHAUSTED", "busy", retry_ms=1)] * 2
            assert (await client.predict(photo_of(scene(0)))).segments
            server.troubles = [refusal("INTERNAL", "inference failed")]
            with pytest.raises(ServerError, match=r"refused the request: inference failed$"):
                [each async for each in client.stream([photo_of(scene(0))], errors="yield")]
            with pytest.raises(InputError, match=r"1\.png: not a readable image"):
                [each async for each in client.stream(folder)]
            assert (await client.health()).ready
        with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+ is not open: use `async with`"):
            await client.predict(photo_of(scene(0)))
        with pytest.raises(InputError, match="is not open"):
            await upsnet.AsyncClient(server.url).health()
        await client.open()  # again
        assert (await client.health()).ready
        await client.close()

    run(main())


def test_a_server_that_dies_ends_a_stream(server: FakeServer) -> None:
    gone = f"^no Triton server answers at 127.0.0.1:{server.port}"

    async def main() -> None:
        async with upsnet.AsyncClient(server.url, retries=0) as client:
            stream = client.stream([encoded(photo_of(scene(0)))] * 20, concurrency=1, errors="yield")
            await anext(stream)
            await asyncio.to_thread(server.stop)
            with pytest.raises(ServerError, match=gone) as caught:
                async for _, found in stream:
                    assert not isinstance(found, InputError), "no photo is bad"
            assert caught.value.status == "UNAVAILABLE"
            with pytest.raises(ServerError, match=gone):
                await client.predict(photo_of(scene(0)))

    run(main())


def test_a_client_that_is_closed_ends_its_stream(server: FakeServer) -> None:
    async def main() -> None:
        async with upsnet.AsyncClient(server.url) as client:
            stream = client.stream([encoded(photo_of(scene(0)))] * 20, concurrency=1, errors="yield")
            await anext(stream)
            await client.close()
            with pytest.raises(ServerError, match="is closed; open another"):
                [each async for each in stream]

    run(main())


def test_nobody_there(server: FakeServer) -> None:
    server.stop()

    async def main() -> None:
        with pytest.raises(ServerError, match=f"^no Triton server answers at 127.0.0.1:{server.port}; start one"):
            async with upsnet.AsyncClient(server.url):
                pass

    run(main())


def test_the_loop_stays_free_while_a_photo_is_decoded(tmp_path: Path) -> None:
    """Of a server without upsnet_photo: a large photo is read and resized in a thread."""
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(tmp_path / "large.jpg")
    running = FakeServer(photos=False)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with upsnet.AsyncClient(running.url) as client:
            ticking = asyncio.create_task(tick())
            running.gate.clear()
            asking = asyncio.create_task(client.predict(tmp_path / "large.jpg"))
            while not running.at_once:  # read, resized, and on its way
                await asyncio.sleep(0)
            assert ticks > 20
            running.gate.set()
            await asking
            ticking.cancel()

    run(main())
    running.stop()
