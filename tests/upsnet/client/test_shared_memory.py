"""Tensors by shared memory: the same answers as without, whatever the server does, and nothing left behind."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upsnet
from tests.conftest import FakePredictor
from tests.upsnet.client.fake_server import FakeServer, grpc, refusal, service_pb2
from upsnet.contract import OUTPUTS
from upsnet.errors import InputError, ServerError
from upsnet.geometry import NetworkBatch
from upsnet.model import Model
from upsnet.runtimes import shared_memory
from upsnet.runtimes.kserve import VERSION_HEADER, Server
from upsnet.runtimes.shared_memory import PLACE, TOKEN, Regions, read_token
from upsnet.runtimes.triton import TritonPredictor

SECRET = "0123456789abcdef" * 4


class SharingServer(FakeServer):
    """Takes tensors in regions, too, and gives the panoptic maps there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.restart()
        self.registered: list[str] = []  # all that ever were
        self.meant: list[str] = []  # the version for which each was
        self.used: list[str] = []  # the region of each inference; empty: none
        super().__init__(photos=False)

    def restart(self) -> None:
        """As a new service."""
        self.regions: dict[str, mmap.mmap] = {}
        self.place.unlink(missing_ok=True)
        self.place.write_text(SECRET)
        self.place.chmod(0o600)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        context.send_initial_metadata(((PLACE, str(self.place)),))
        return super().ServerMetadata(request, context)

    def _check_token(self, context: Any) -> None:
        if dict(context.invocation_metadata()).get(TOKEN) != self.place.read_text():
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "closed")

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self._check_token(context)
        with open(f"/dev/shm{request.key}", "r+b") as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        self.registered.append(request.name)
        self.meant.append(dict(context.invocation_metadata()).get(VERSION_HEADER, ""))
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._check_token(context)
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def _tensors(self, predictor: FakePredictor, request: Any, context: Any) -> Any:
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        self.used.append(name)
        if not name:
            return super()._tensors(predictor, request, context)
        self._check_token(context)
        if name not in self.regions:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not registered here")
        memory, values = self.regions[name], request.inputs[0].parameters
        start, size = values["shared_memory_offset"].int64_param, values["shared_memory_byte_size"].int64_param
        request.raw_input_contents.insert(0, memory[start : start + size])
        answer = super()._tensors(predictor, request, context)
        values = request.outputs[OUTPUTS.index("panoptic")].parameters
        start, size = values["shared_memory_offset"].int64_param, values["shared_memory_byte_size"].int64_param
        place = [each.name for each in answer.outputs].index("panoptic")
        memory[start : start + size] = answer.raw_output_contents[place]
        answer.raw_output_contents[place] = b""
        return answer


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[SharingServer]:
    before = left()
    running = SharingServer(tmp_path / "shared-memory-token")
    yield running
    running.stop()
    assert left() == before


def left() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("upsnet-client-")}


def make_batch(side: int, count: int = 1, seed: int = 0) -> NetworkBatch:
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return NetworkBatch(images, np.full((count, 2), side, np.int32), np.ones(count, np.float32))


def assert_right(predictor: TritonPredictor, batch: NetworkBatch) -> None:
    for ours, theirs in zip(predictor.predict(batch), FakePredictor("fake").predict(batch), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_region_is_registered_for_the_version_that_is_asked(sharing: SharingServer) -> None:
    sharing.others["2"] = FakePredictor("fake")
    for version in (None, 2):
        with closing(TritonPredictor(sharing.url, version=version)) as predictor:
            assert_right(predictor, make_batch(320))
    assert sharing.meant == ["", "2"] and sharing.asked_versions == ["", "2"]


def test_a_region_outlives_a_switch_to_another_version(sharing: SharingServer) -> None:
    sharing.version = "1"
    with closing(TritonPredictor(sharing.url)) as predictor:
        assert_right(predictor, make_batch(320))
        sharing.version = "2"
        for _ in range(2):
            assert_right(predictor, make_batch(320))
    assert len(sharing.registered) == 1 and sharing.used == sharing.registered * 4, "of which one was asked again"


def test_large_requests_share_one_region_which_grows(sharing: SharingServer) -> None:
    predictor = TritonPredictor(sharing.url)
    for side, count in ((64, 1), (320, 1), (320, 1), (320, 4), (352, 3), (320, 9)):
        assert_right(predictor, make_batch(side, count))
    small, first, second, larger, *others = sharing.used
    assert small == "" and first == second != larger
    assert others == [larger] * 4  # nine images are three requests
    assert list(sharing.regions) == [larger] and sharing.registered == [first, larger]
    predictor.close()
    assert not sharing.regions


def test_requests_at_once_have_a_region_each(sharing: SharingServer) -> None:
    sharing.gate.clear()
    with upsnet.Client(sharing.url, shared_memory=True) as client, ThreadPoolExecutor(12) as pool:
        photos = [make_batch(320, seed=seed).images[0] for seed in range(12)]
        answers = [pool.submit(client.predict, photo) for photo in photos]
        while sharing.at_once < 12:
            threading.Event().wait(0.01)
        sharing.gate.set()
        local = Model(FakePredictor("fake"))
        for photo, answer in zip(photos, answers, strict=True):
            np.testing.assert_array_equal(answer.result().ids, local.predict(photo).ids)
    used = [name for name in sharing.used if name]
    assert len(used) == len(set(used)) == shared_memory.MOST_REGIONS < len(sharing.used)
    assert not sharing.regions


def test_never_and_always(sharing: SharingServer) -> None:
    for choice, name in ((False, ""), (True, None)):
        with upsnet.load(sharing.url, shared_memory=choice) as model:
            model.predict(make_batch(320 if name == "" else 32).images[0])
        assert (sharing.used[-1] == "") == (name == "")
    assert len(sharing.registered) == 1


@pytest.mark.parametrize(
    "status", ["UNAVAILABLE", "PERMISSION_DENIED", "INVALID_ARGUMENT", "INTERNAL", "RESOURCE_EXHAUSTED"]
)
def test_what_fails_in_shared_memory_goes_as_a_message(sharing: SharingServer, status: str) -> None:
    predictor = TritonPredictor(sharing.url, retries=0)
    assert_right(predictor, make_batch(320))
    sharing.troubles = [refusal(status, "no")]
    assert_right(predictor, make_batch(320, seed=1))
    assert_right(predictor, make_batch(320, seed=2))
    first, message, fresh = sharing.used
    assert message == "" and fresh not in (first, "")
    predictor.close()


def test_a_new_service_at_the_same_address(sharing: SharingServer) -> None:
    predictor = TritonPredictor(sharing.url)
    assert_right(predictor, make_batch(320))
    sharing.restart()
    for seed in range(3):
        assert_right(predictor, make_batch(320, seed=seed))
    assert [bool(name) for name in sharing.used] == [True, True, False, True, True]
    predictor.close()


def test_a_region_is_not_used_after_a_deadline(sharing: SharingServer) -> None:
    with upsnet.Client(sharing.url, timeout=3, shared_memory=True) as client:
        client.predict(make_batch(320).images[0])
        sharing.gate.clear()
        with pytest.raises(ServerError, match=r"did not answer within 3 s"):
            client.predict(make_batch(320).images[0])
        sharing.gate.set()
        client.predict(make_batch(320).images[0])
    assert sharing.used[-1] not in (sharing.used[0], "")


def test_of_asyncio(sharing: SharingServer) -> None:
    photos = [make_batch(320, seed=seed).images[0] for seed in range(3)]

    async def main() -> list[Any]:
        async with upsnet.AsyncClient(sharing.url, shared_memory=True) as client:
            answers = await client.predict(photos)
            sharing.gate.clear()
            task = asyncio.create_task(client.predict(photos[0]))
            while not sharing.at_once:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            sharing.gate.set()
            return answers

    local = Model(FakePredictor("fake"))
    for photo, answer in zip(photos, asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(answer.ids, local.predict(photo).ids)
    assert all(sharing.used)
    assert len(sharing.regions) == 1  # that of the cancelled call: the server may be at it


def test_no_room(sharing: SharingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SPARE", 1 << 60)
    with pytest.raises(
        InputError, match=r"^the Triton server at .* cannot share memory with this client: .*/dev/shm has"
    ):
        upsnet.Client(sharing.url, shared_memory=True)
    predictor = TritonPredictor(sharing.url)
    assert_right(predictor, make_batch(320))
    predictor.close()
    assert not sharing.registered


def test_where_it_must_be_and_cannot(sharing: SharingServer) -> None:
    sharing.place.write_text("an SSH key")
    with pytest.raises(InputError, match=r"cannot share memory with this client: it runs as another user$"):
        TritonPredictor(sharing.url, shared_memory=True)
    with pytest.raises(InputError, match=r"example.com:8001 is on another machine"):
        next(Regions(Server("example.com:8001", shared_memory=True)).open())
    with pytest.raises(InputError, match=r"^shared_memory 'yes': give True, False or None$"):
        upsnet.Client(sharing.url, shared_memory="yes")  # type: ignore[arg-type]


def test_a_server_is_sent_no_file_but_a_token(tmp_path: Path) -> None:
    """Whoever listens on this machine may name any file."""
    token, other = tmp_path / "shared-memory-token", tmp_path / "id_rsa"
    for path in (token, other):
        path.write_text(SECRET)
        path.chmod(0o600)
    assert read_token(str(token)) == SECRET
    with pytest.raises(InputError):
        read_token(str(other))
    token.chmod(0o644)
    with pytest.raises(InputError):
        read_token(str(token))
    token.unlink()
    token.symlink_to(other)
    with pytest.raises(OSError):
        read_token(str(token))
    token.unlink()
    os.mkfifo(token, 0o600)
    with pytest.raises(InputError):
        read_token(str(token))


def test_a_forked_process_leaves_the_regions_to_its_parent(
    sharing: SharingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TritonPredictor(sharing.url)
    assert_right(predictor, make_batch(320))
    monkeypatch.setattr(predictor.connection.regions, "_owner", os.getppid())
    assert_right(predictor, make_batch(320, seed=1))
    predictor.close()
    assert [bool(name) for name in sharing.used] == [True, False]
    assert len(sharing.regions) == 1
