"""Several versions behind a front: who is asked, what a switch does to those under way, and that none harms another."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb

from serving.backend import Role, State
from serving.front.requests import Asked
from serving.front.sampling import Sampling
from serving.record import Outcome, Record
from tests.serving.front.fake import LIMITS, make_request, photo_request, until
from tests.serving.front.fake_versions import World, world
from tests.serving.front.test_shared_memory import Memory, token_of
from tests.serving.ops.fakes import binary
from upsnet.runtimes.kserve import VERSION_HEADER


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_a_request_goes_to_the_version_that_it_names() -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            assert await made.infer(make_request("a")) == "1"
            assert await made.infer(make_request("b"), "2") == "2"
            assert await made.infer(make_request("c"), "1") == "1"
            assert (made.versions[1].grpc.seen, made.versions[2].grpc.seen) == (["a", "c"], ["b"])
            assert [record.version for record in made.heard.records] == ["1", "2", "1"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        ("7", grpc.StatusCode.NOT_FOUND, "there is no version 7; there is 1 and 2"),
        ("-1", grpc.StatusCode.INVALID_ARGUMENT, "a version is a number from 1 on, not '-1'"),
        ("1 ", grpc.StatusCode.INVALID_ARGUMENT, "a version is a number from 1 on, not '1 '"),
        ("../1\n" * 9, grpc.StatusCode.INVALID_ARGUMENT, r"a version is a number from 1 on, not '../1\\n.{,40}'"),
        ("3", grpc.StatusCode.UNAVAILABLE, "version 3 does not run: no answer within 60 s"),
    ],
)
def test_a_version_that_is_not_there(version: str, code: grpc.StatusCode, words: str) -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            made.fleet.failed[3] = "no answer within 60 s"
            told = await refusal(made.infer(make_request(), version))
            assert told[0] == code and re.fullmatch(words, told[1])
            assert made.versions[1].grpc.seen == made.versions[2].grpc.seen == []
            assert not (await made.ask("ModelReady", name="upsnet", version=version)).ready
            assert await made.infer(make_request()) == "1"

    asyncio.run(main())


def test_a_switch_is_between_two_requests_and_those_under_way_end_where_they_began() -> None:
    async def main() -> None:
        async with world() as made:
            old, new = made.versions[1], await made.add(2)
            old.grpc.gate.clear()
            waiting = [asyncio.ensure_future(made.infer(make_request(name))) for name in "abcdefghijklmnopqr"]
            await until(lambda: made.front.upstreams.serving.admission.waiting == 2)
            made.serve(2)
            assert await made.infer(make_request("new")) == "2" and new.grpc.seen == ["new"]
            assert await made.infer(make_request("named"), "2") == "2"
            old.grpc.gate.set()
            assert await asyncio.gather(*waiting) == ["1"] * 18
            made.serve(1)  # rolled back
            assert await made.infer(make_request()) == "1"
            assert {record.outcome for record in made.heard.records} == {Outcome.OK}

    asyncio.run(main())


def test_switches_under_load_cost_no_request() -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            stop = asyncio.Event()

            async def client() -> list[str]:
                found = []
                while not stop.is_set():
                    found.append(await made.infer(make_request()))
                return found

            clients = [asyncio.ensure_future(client()) for _ in range(3)]
            for number in (2, 1, 2, 1, 2):
                seen = len(made.versions[number].grpc.seen)
                made.serve(number)
                await until(lambda number=number, seen=seen: len(made.versions[number].grpc.seen) > seen + 5)
            stop.set()
            answered = [each for found in await asyncio.gather(*clients) for each in found]
            assert set(answered) == {"1", "2"}
            assert len(made.heard.records) == len(answered)

    asyncio.run(main())


def test_a_stream_follows_the_switch_from_message_to_message() -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            call = made.stub.ModelStreamInfer()
            told: list[Any] = []
            for number, version in ((1, ""), (2, ""), (2, "1"), (2, "9")):
                if number == 2 and not told[1:]:
                    made.serve(2)
                request = make_request()
                request.model_version = version
                await call.write(request)
                told.append(await call.read())
            await call.done_writing()
            assert [each.infer_response.model_version for each in told] == ["1", "2", "1", ""]
            assert told[3].error_message == "there is no version 9; there is 1 and 2"

    asyncio.run(main())


def test_a_version_that_leaves_answers_what_it_has() -> None:
    async def main() -> None:
        async with world() as made:
            old = made.versions[1]
            await made.add(2)
            old.grpc.gate.clear()
            waiting = asyncio.ensure_future(made.infer(make_request()))
            await until(lambda: old.grpc.seen)
            made.serve(2)
            gone = made.fleet.members.pop(1)
            leaving = asyncio.ensure_future(made.front.leave(gone))
            await asyncio.sleep(0.2)
            assert not leaving.done()
            assert (await refusal(made.infer(make_request(), "1")))[0] == grpc.StatusCode.NOT_FOUND
            old.grpc.gate.set()
            assert await waiting == "1"
            await leaving
            assert await made.infer(make_request()) == "2"
            assert [each.version for each in made.front.upstreams.all] == [2]
            again = await made.add(1, again="again")  # the number comes back, with another server
            assert await made.infer(make_request(), "1") == "1" and again.grpc.seen == ["r"]

    asyncio.run(main())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_who_waits_for_a_version_that_is_ended_is_told_to_ask_again(protocol: str) -> None:
    async def main() -> None:
        async with world() as made:
            old = made.versions[1]
            await made.add(2)
            waiting: asyncio.Future[Any]
            if protocol == "grpc":
                old.grpc.gate.clear()
                call = made.stub.ModelInfer(make_request())
                waiting = asyncio.ensure_future(refusal(call))
                await until(lambda: old.grpc.seen)
            else:
                old.http.gate = asyncio.Event()
                body, header = binary()
                head = f"POST /v2/models/upsnet/infer HTTP/1.1\nContent-Length: {len(body)}\n{header}"
                waiting = asyncio.ensure_future(made.http(head, body))
                await until(lambda: old.http.seen)
            made.serve(2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(made.front.leave(made.fleet.members.pop(1)), 0.2)
            told = await waiting
            if protocol == "grpc":
                assert told == (grpc.StatusCode.UNAVAILABLE, "version 1 has been taken away; retry")
                assert ("retry-after", "0.1") in list(await call.trailing_metadata())
            else:
                assert told[0] == 503 and told[1]["Retry-After"] == "1"
            assert await made.infer(make_request()) == "2"
            assert {record.outcome for record in made.heard.records} == {Outcome.UNAVAILABLE, Outcome.OK}

    asyncio.run(main())


def test_a_candidate_that_hangs_and_is_crowded_takes_nothing_from_the_version_in_service() -> None:
    async def main() -> None:
        async with world() as made:
            candidate = await made.add(2, limits=LIMITS._replace(max_photos=1, instances=1, max_waiting=3))
            candidate.grpc.gate.clear()
            hanging = [asyncio.ensure_future(made.infer(make_request(), "2")) for _ in range(5)]
            await until(lambda: made.front.upstreams.find("2").admission.waiting == 3)
            code, words = await refusal(made.infer(make_request(), "2"))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and words.startswith("busy: 3 requests wait")
            assert [await made.infer(make_request()) for _ in range(20)] == ["1"] * 20
            candidate.backend.set(State.DEGRADED, "it has answered nothing for 30 s")
            assert await made.infer(make_request()) == "1"
            assert (await made.ask("ServerReady")).ready
            assert not (await made.ask("ModelReady", name="upsnet", version="2")).ready
            assert (await made.ask("ModelReady", name="upsnet")).ready
            assert (await made.http("GET /health/ready HTTP/1.1", port="metrics"))[0] == 200
            assert made.versions[1].backend.suspicions == []
            candidate.backend.set(State.READY)
            candidate.grpc.gate.set()
            await asyncio.gather(*hanging)

    asyncio.run(main())


def test_only_the_version_that_fails_is_suspected() -> None:
    async def main() -> None:
        async with world() as made:
            candidate = await made.add(2)
            candidate.grpc.error = grpc.StatusCode.INTERNAL, "Stub process 'upsnet' is not healthy."
            assert (await refusal(made.infer(make_request(), "2")))[0] == grpc.StatusCode.UNAVAILABLE
            assert len(candidate.backend.suspicions) == 1 and made.versions[1].backend.suspicions == []

    asyncio.run(main())


def test_each_version_has_limits_of_its_own() -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2, limits=LIMITS._replace(max_pixels=32 * 32))
            assert await made.infer(make_request(shape=(1, 64, 64, 3))) == "1"
            code, words = await refusal(made.infer(make_request(shape=(1, 64, 64, 3)), "2"))
            assert (code, words) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "images are 1 x 64 x 64: more than 1024 pixels",
            )

    asyncio.run(main())


def test_calls_about_a_version() -> None:
    async def main() -> None:
        async with world() as made:
            candidate = await made.add(2)
            assert (await made.ask("ModelMetadata", name="upsnet")).versions == ["1", "2"]
            assert candidate.grpc.calls == []
            assert (await made.ask("ModelMetadata", name="upsnet", version="2")).versions == ["1", "2"]
            (found,) = (await made.ask("ModelStatistics", name="upsnet", version="2")).model_stats
            assert found.version == "2"
            await made.ask("ModelConfig", name="upsnet", version="2")
            assert candidate.grpc.calls == ["ModelMetadata", "ModelStatistics", "ModelConfig"]
            assert made.versions[1].grpc.calls == ["ModelMetadata"]
            for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
                assert (await refusal(made.ask(method, name="upsnet", version="5")))[0] == grpc.StatusCode.NOT_FOUND
            candidate.backend.set(State.STARTING)
            assert (await made.ask("ModelMetadata", name="upsnet")).versions == ["1"]

    asyncio.run(main())


def test_rest_names_versions_too() -> None:
    async def main() -> None:
        async with world() as made:
            candidate = await made.add(2, limits=LIMITS._replace(max_pixels=32 * 32))
            body, header = binary()

            async def post(path: str, body: bytes = body, header: str = header) -> tuple[int, str]:
                head = f"POST /v2/models/upsnet{path}/infer HTTP/1.1\nContent-Length: {len(body)}\n{header}"
                status, _, answer = await made.http(head, body)
                return status, answer.decode()

            assert (await post(""))[0] == (await post("/versions/2"))[0] == 200
            assert [path for _, path, _, _ in candidate.http.seen] == ["/v2/models/upsnet/versions/2/infer"]
            assert [path for _, path, _, _ in made.versions[1].http.seen] == ["/v2/models/upsnet/infer"]
            assert await post("/versions/7") == (404, '{"error": "there is no version 7; there is 1 and 2"}')
            larger = binary(side=64)
            assert (await post("", *larger))[0] == 200 and (await post("/versions/2", *larger))[0] == 413
            status, _, answer = await made.http("GET /v2/models/upsnet HTTP/1.1")
            assert status == 200 and json.loads(answer)["versions"] == ["1", "2"]
            for version, wanted in (("2", 200), ("7", 503)):
                path = f"/v2/models/upsnet/versions/{version}/ready"
                assert (await made.http(f"GET {path} HTTP/1.1"))[0] == wanted
            made.serve(2)
            assert (await post(""))[0] == 200 and len(candidate.http.seen) == 2

    asyncio.run(main())


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.path.unlink(missing_ok=True)


async def token(made: World) -> tuple[tuple[str, str], ...]:
    return await token_of(made)  # type: ignore[arg-type]


def test_a_region_is_registered_with_the_server_that_needs_it(memory: Memory) -> None:
    async def main() -> None:
        async with world() as made:
            one, two = made.versions[1].grpc, (await made.add(2)).grpc
            given = await token(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=given)
            assert (one.calls[1:], two.calls) == ([f"register {memory.name}"], [])
            for _ in range(2):
                assert await made.infer(memory.infer(), "2", metadata=given) == "2"
            assert two.calls == [f"register {memory.name}"]
            assert (await made.http("GET /metrics HTTP/1.1", port="metrics"))[2].count(b"regions 1.0") == 1
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=given)
            assert one.calls[-1] == two.calls[-1] == f"unregister {memory.name}"

    asyncio.run(main())


def test_a_region_without_a_name_is_of_the_version_for_which_it_was_registered(memory: Memory) -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            given = await token(made)
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=(*given, (VERSION_HEADER, "2")))
            memory.path.unlink()
            assert await made.infer(memory.infer(), "2", metadata=given) == "2"
            code, _ = await refusal(made.infer(memory.infer(), metadata=given))
            assert code == grpc.StatusCode.INVALID_ARGUMENT and made.versions[1].grpc.seen == []
            other = Memory(key=f"/upsnet-client-{secrets.token_hex(16)}")
            other.name = other.key.removeprefix("/upsnet-client-")
            call = made.stub.SystemSharedMemoryRegister(other.request(), metadata=(*given, (VERSION_HEADER, "9")))
            assert (await refusal(call))[0] == grpc.StatusCode.NOT_FOUND
            other.path.unlink()

    asyncio.run(main())


def test_nothing_stays_open_of_a_version_that_has_gone(memory: Memory) -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            given = await token(made)
            await made.infer(make_request())
            await made.stub.SystemSharedMemoryRegister(memory.request(), metadata=given)

            def open_regions() -> int:
                links = [Path(f"/proc/self/fd/{name.name}") for name in Path("/proc/self/fd").iterdir()]
                return sum(link.exists() and str(link.readlink()) == str(memory.path) for link in links)

            assert open_regions() == 1
            await made.infer(memory.infer(), "2", metadata=given)
            assert open_regions() == 2
            await made.front.leave(made.fleet.members.pop(2))
            assert open_regions() == 1
            gone = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
            await made.stub.SystemSharedMemoryUnregister(gone, metadata=given)
            assert open_regions() == 0

    asyncio.run(main())


def test_metrics_tell_of_each_version_once() -> None:
    async def main() -> None:
        async with world() as made:
            await made.add(2)
            await made.add(3)
            await made.versions[3].http.__aexit__()  # its metrics do not answer
            made.fleet.failed[4] = "it did not start"
            await made.infer(make_request())
            text = (await made.http("GET /metrics HTTP/1.1", port="metrics"))[2].decode()
            families = list(text_string_to_metric_families(text))
            assert len({family.name for family in families}) == len(families)
            samples = {
                (sample.name, *sorted(sample.labels.items())): sample.value
                for family in families
                for sample in family.samples
            }
            upsnet = ("model", "upsnet")
            assert samples["nv_inference_count_total", upsnet, ("version", "1")] == 1
            assert samples["nv_inference_count_total", upsnet, ("version", "2")] == 2
            assert samples["upsnet_executed_batches_total", upsnet, ("size", "1")] == 1
            assert samples["upsnet_executed_batches_total", upsnet, ("size", "1"), ("version", "2")] == 2
            assert samples[("nv_cpu_utilization",)] == 0.1
            role = ("role", "candidate"), ("sha256", f"{2:064x}"), ("version", "2")
            assert samples["upsnet_version_info", *role] == 1
            assert samples["upsnet_version_ready", ("version", "2")] == 1
            assert samples["upsnet_version_resident_memory_bytes", ("version", "2")] == 200
            assert samples[("upsnet_versions_failed",)] == 1
            assert samples[("upsnet_triton_scrape_failures_total",)] == 0, "of the version in service alone"

    asyncio.run(main())


def test_the_health_of_the_versions() -> None:
    class Told(Sampling):
        def figures(self) -> dict[str, Any]:
            return {"photos": 7}

    async def main() -> None:
        async with world(Told()) as made:
            candidate = await made.add(2)
            candidate.backend.set(State.DEGRADED, "it starts again", restarts=3, since=1.7e9, sha256="ab" * 32)
            made.fleet.failed[4] = "it did not start"
            made.fleet.rollouts = "f00"
            status, _, body = await made.http("GET /health/versions HTTP/1.1", port="metrics")
            told = json.loads(body)
            assert status == 200 and (told["serving"], told["rollouts"], told["tls"]) == (1, "f00", False)
            assert told["ports"] == made.ports and told["canary"] == {"photos": 7}
            assert told["failed"] == {"4": "it did not start"}
            assert {number: each["role"] for number, each in told["versions"].items()} == {
                "1": Role.SERVING,
                "2": Role.CANDIDATE,
            }
            assert told["versions"]["2"] == {
                "role": "candidate",
                "state": "degraded",
                "reasons": ["it starts again"],
                "since": "2023-11-14T22:13:20.000+00:00",
                "restarts": 3,
                "model_sha256": "ab" * 32,
                "memory_bytes": {},
            }

    asyncio.run(main())


def test_answered_requests_pass_by_the_sampling() -> None:
    class Kept:
        def __init__(self) -> None:
            self.seen: list[tuple[int, str, int, int | None]] = []

        async def start(self) -> None: ...
        async def stop(self) -> None: ...

        def answered(self, version: int, record: Record, asked: Asked, body: bytes, header_length: int | None) -> None:
            assert record.served > 0 and asked.photos == 1
            self.seen.append((version, record.method, len(body), header_length))

    async def main() -> None:
        kept = Kept()
        async with world(Sampling(kept)) as made:
            candidate = await made.add(2)
            request = make_request()
            await made.infer(request)
            await made.infer(request, "2")
            call = made.stub.ModelStreamInfer(iter([request]))
            await call.read()
            body, header = binary()
            head = f"POST /v2/models/upsnet/infer HTTP/1.1\nContent-Length: {len(body)}\n{header}"
            await made.http(head, body)
            candidate.grpc.error = grpc.StatusCode.INTERNAL, "broken"
            await refusal(made.infer(request, "2"))
            await refusal(made.infer(request, "9"))
            size = make_request().ByteSize()
            assert kept.seen == [
                (1, "ModelInfer", size, None),
                (2, "ModelInfer", size + 3, None),
                (2, "ModelStreamInfer", size + 3, None),
                (1, "ModelInfer", len(body), int(header.partition(": ")[2])),
            ]

    asyncio.run(main())


def test_the_ports_take_what_a_version_of_the_usual_batch_may_be_asked() -> None:
    async def main() -> None:
        small = LIMITS._replace(max_photos=1)
        assert small.of_port.max_message == LIMITS.max_message > small.max_message
        assert LIMITS._replace(max_photos=9).of_port.max_photos == 9
        async with world() as made:  # its ports have LIMITS
            await made.add(2, limits=small)
            photos = photo_request(*[bytes(1 << 16)] * 3)
            assert await made.infer(photos) == "1"
            code, words = await refusal(made.infer(photos, "2"))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert words == "3 photos: more than 1 in one request"
            photo = photo_request(bytes(1 << 16))
            photo.inputs.add(name="more", datatype="UINT8", shape=[1, small.max_message])
            photo.raw_input_contents.append(bytes(small.max_message))
            code, words = await refusal(made.infer(photo, "2"))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert words == f"a message of {photo.ByteSize()} bytes: more than {small.max_message}"

    asyncio.run(main())
