"""The door of shared memory: who comes in, with what, and what a request may then name."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serving.backend import State
from tests.serving.front.fake import LIMITS, Bench, bench, make_request, until
from upsnet.runtimes.shared_memory import PLACE, TOKEN

SIZE = 3072


class Memory:
    """A region of ours in /dev/shm, and what is sent about it."""

    def __init__(self, size: int = SIZE, mode: int = 0o600, key: str = "") -> None:
        self.name = secrets.token_hex(16)
        self.key = key or f"/upsnet-client-{self.name}"
        self.path = Path("/dev/shm") / self.key[1:]
        self.path.write_bytes(bytes(size))
        self.path.chmod(mode)

    def request(self, **changed: Any) -> Any:
        fields = {"name": self.name, "key": self.key, "offset": 0, "byte_size": SIZE} | changed
        return pb.SystemSharedMemoryRegisterRequest(**fields)

    def infer(self, size: int = SIZE, offset: int = 0) -> Any:
        request = make_request()
        del request.raw_input_contents[:]
        values = request.inputs[0].parameters
        values["shared_memory_region"].string_param = self.name
        values["shared_memory_byte_size"].int64_param = size
        values["shared_memory_offset"].int64_param = offset
        return request


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.path.unlink(missing_ok=True)


async def token_of(made: Bench) -> tuple[tuple[str, str], ...]:
    """As a client of this user finds it."""
    call = made.stub.ServerMetadata(pb.ServerMetadataRequest())
    place = Path(dict(list(await call.initial_metadata()))[PLACE])
    await call
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    return ((TOKEN, place.read_text()),)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_a_region_is_registered_used_and_unregistered(memory: Memory) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            assert len(made.shared) == 1
            await made.infer(memory.infer(), metadata=token)
            assert made.triton.calls[1:] == [f"register {memory.name}"]
            code, _ = await code_of(made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=token)
            assert made.triton.calls[2:] == [f"unregister {memory.name}"]
            assert len(made.shared) == 0
            code, _ = await code_of(made.infer(memory.infer(), metadata=token))
            assert code == grpc.StatusCode.PERMISSION_DENIED
            place = made.shared.place
            await made.front.stop(0)
            assert not place.exists()

    asyncio.run(main())


@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_who_has_no_token_is_told_that_it_is_closed(memory: Memory, token: str | None) -> None:
    async def main() -> None:
        async with bench() as made:
            metadata = () if token is None else ((TOKEN, token),)
            for call, request in (
                ("SystemSharedMemoryRegister", memory.request()),
                ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
            ):
                told = await code_of(getattr(made.stub, call)(request, metadata=metadata))
                assert told == (grpc.StatusCode.PERMISSION_DENIED, f"{call} is closed on this server")
            assert made.triton.calls == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "/psm_others"},
        {"key": "/upsnet-client-" + "0" * 32},  # not the name's
        {"key": "/upsnet-client-../../etc/passwd"},
        {"name": "short"},
        {"name": ""},
        {"byte_size": 0},
        {"byte_size": SIZE + 1},
        {"byte_size": 2**63},
        {"offset": 1},
        {"offset": 2**63},
    ],
)
def test_only_regions_of_the_callers_own_within_their_bounds(memory: Memory, changed: dict[str, Any]) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            code, told = await code_of(made.stub.SystemSharedMemoryRegister(memory.request(**changed), metadata=token))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert memory.name not in told and "/dev/shm" not in told
            assert made.triton.calls == ["ServerMetadata"]

    asyncio.run(main())


def test_files_that_are_not_this_users_alone(memory: Memory, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)

            async def refused() -> bool:
                call = made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
                return (await code_of(call))[0] == grpc.StatusCode.INVALID_ARGUMENT

            memory.path.chmod(0o644)
            assert await refused()
            memory.path.unlink()
            assert await refused()
            (tmp_path / "elsewhere").write_bytes(bytes(SIZE))
            (tmp_path / "elsewhere").chmod(0o600)
            memory.path.symlink_to(tmp_path / "elsewhere")
            assert await refused()
            memory.path.unlink()
            memory.path.mkdir(mode=0o600)
            assert await refused()
            memory.path.rmdir()

    asyncio.run(main())


@pytest.mark.parametrize(("size", "offset"), [(SIZE, 1), (SIZE, -1), (2**63 - 1, 0), (SIZE - 1, 0), (-1, 0)])
def test_requests_stay_inside_their_region(memory: Memory, size: int, offset: int) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            code, _ = await code_of(made.infer(memory.infer(size, offset), metadata=token))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert made.triton.seen == []

    asyncio.run(main())


def test_a_restarted_server_is_told_again(memory: Memory) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            made.backend.set(State.READY, restarts=1)
            made.triton.gate.clear()
            running = asyncio.gather(made.infer(memory.infer(), metadata=token), made.infer())
            await until(lambda: len(made.triton.seen) == 2)
            assert made.shared._regions[memory.name].requests == 1
            made.triton.gate.set()
            await running
            open_files = len(os.listdir("/proc/self/fd"))
            await made.infer(memory.infer(), metadata=token)
            assert made.triton.calls[1:] == [f"register {memory.name}"] * 2
            made.backend.set(State.READY, restarts=2)
            await made.infer(memory.infer(), metadata=token)
            assert len(os.listdir("/proc/self/fd")) == open_files

    asyncio.run(main())


def test_an_idle_region_gives_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(memories: list[Memory]) -> None:
        async with bench(LIMITS._replace(max_regions=2)) as made:
            token = await token_of(made)
            for memory in memories[:2]:
                await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            await made.infer(memories[0].infer(), metadata=token)
            call = made.stub.SystemSharedMemoryRegister(memories[2].request(), metadata=token)
            assert (await code_of(call))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            monkeypatch.setattr("serving.front.shared_memory.IDLE", 0.0)
            await made.stub.SystemSharedMemoryRegister(memories[2].request(), metadata=token)
            assert made.triton.calls[-2:] == [f"unregister {memories[1].name}", f"register {memories[2].name}"]
            assert len(made.shared) == 2

    memories = [Memory() for _ in range(3)]
    try:
        asyncio.run(main(memories))
    finally:
        for memory in memories:
            os.unlink(memory.path)


def test_a_request_needs_the_token(memory: Memory) -> None:
    """Others can read a region's name."""

    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            for metadata in ((), ((TOKEN, "0" * 64),)):
                code, _ = await code_of(made.infer(memory.infer(), metadata=metadata))
                assert code == grpc.StatusCode.PERMISSION_DENIED
            assert made.triton.seen == []

    asyncio.run(main())


def test_a_second_attempt_is_refused(memory: Memory) -> None:
    """Of a call that gRPC retries: the first may still write there when the caller uses the region again."""
    policy = {"maxAttempts": 4, "initialBackoff": "0.01s", "backoffMultiplier": 1, "maxBackoff": "1s"}
    policy |= {"retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}
    config = json.dumps(
        {"methodConfig": [{"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": policy}]}
    )

    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            made.triton.error = grpc.StatusCode.RESOURCE_EXHAUSTED, "too much"
            async with grpc.aio.insecure_channel(made.address, [("grpc.service_config", config)]) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                call = stub.ModelInfer(memory.infer(), metadata=token)
                told = await code_of(call)
            assert told == (grpc.StatusCode.PERMISSION_DENIED, "a request in shared memory is not retried")
            assert made.triton.seen == ["r"]

    asyncio.run(main())


def test_a_restarted_server_is_not_told_of_what_others_put_in_the_place(memory: Memory) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            memory.path.chmod(0o666)
            made.backend.set(State.READY, restarts=1)
            code, _ = await code_of(made.infer(memory.infer(), metadata=token))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert made.triton.seen == []

    asyncio.run(main())


def test_a_region_that_has_shrunk_is_not_touched(memory: Memory) -> None:
    """Its name gone or not. Nothing stays open when it goes."""

    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            open_files = len(os.listdir("/proc/self/fd"))
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            file = os.open(memory.path, os.O_RDWR)
            memory.path.unlink()
            await made.infer(memory.infer(), metadata=token)
            os.ftruncate(file, SIZE - 1)
            told = await code_of(made.infer(memory.infer(), metadata=token))
            os.close(file)
            words = "a region has become shorter than it was when it was registered"
            assert told == (grpc.StatusCode.INVALID_ARGUMENT, words)
            assert made.triton.seen == ["r"]
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=token)
            assert len(os.listdir("/proc/self/fd")) == open_files

    asyncio.run(main())


def test_a_pipe_in_the_place_of_a_region_keeps_nobody_waiting(memory: Memory) -> None:
    memory.path.unlink()
    os.mkfifo(memory.path, 0o600)

    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            call = made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            assert (await code_of(call))[0] == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(main())


def test_a_region_in_use_stays(memory: Memory) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            made.triton.gate.clear()
            running = asyncio.ensure_future(made.infer(memory.infer(), metadata=token))
            await until(lambda: made.triton.seen)
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            code, _ = await code_of(made.stub.SystemSharedMemoryUnregister(gone, metadata=token))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            made.triton.gate.set()
            await running
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=token)
            assert made.triton.calls[1:] == [f"register {memory.name}", f"unregister {memory.name}"]

    asyncio.run(main())


def test_triton_lets_a_region_go_a_moment_after_the_answer(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=token)
            monkeypatch.setattr("serving.front.region_calls.LETTING_GO", (0.0, 0.0))
            made.triton.holding = 3
            told = await code_of(made.stub.SystemSharedMemoryUnregister(gone, metadata=token))
            assert told == (grpc.StatusCode.INVALID_ARGUMENT, "a request uses that region")
            made.triton.holding = 2
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=token)
            assert made.triton.calls[2:] == [f"unregister {memory.name}"] * 6
            assert len(made.shared) == 0

    asyncio.run(main())


def test_an_idle_region_without_a_name_goes_when_another_comes(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a client is killed. One that has its name stays."""
    others = [Memory(), Memory()]

    async def main() -> None:
        async with bench() as made:
            token = await token_of(made)
            for each in (memory, others[0]):
                await made.stub.SystemSharedMemoryRegister(each.request(), metadata=token)
            memory.path.unlink()
            monkeypatch.setattr("serving.front.shared_memory.IDLE", 0.0)
            await made.stub.SystemSharedMemoryRegister(others[1].request(), metadata=token)
            assert made.triton.calls[-2:] == [f"unregister {memory.name}", f"register {others[1].name}"]
            assert len(made.shared) == 2

    try:
        asyncio.run(main())
    finally:
        for each in others:
            each.path.unlink()
