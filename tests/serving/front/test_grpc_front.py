"""The front's gRPC, before a Triton that does as it is told."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from serving.backend import State
from serving.front.front import Front, FrontSettings
from serving.front.reading import Reading
from serving.record import Outcome
from tests.serving.front.fake import LIMITS, Bench, Heard, bench, make_request, until
from upsnet.errors import InputError

SERVICE = "inference.GRPCInferenceService"
OPEN = {
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "ModelInfer", "ModelStreamInfer",
}  # fmt: skip
CLOSED = [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
CLOSED = sorted(set(CLOSED) - OPEN)  # two of them but for who has the token: see test_shared_memory.py
BIG_CALL = """
import grpc, sys
with grpc.insecure_channel(sys.argv[1], [("grpc.max_send_message_length", -1)]) as channel:
    try:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(bytes(int(sys.argv[2])))
    except grpc.RpcError as error:
        print(error.code().name)
"""


async def fails(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def finished(made: Bench, count: int = 1) -> list[Any]:
    await until(lambda: len(made.heard.records) >= count)
    assert len(made.heard.records) == count
    return made.heard.records


def test_an_inference_goes_through_as_it_is() -> None:
    async def main() -> None:
        async with bench() as made:
            call = made.stub.ModelInfer(make_request("mine"))
            answer = await call
            assert answer.id == "mine" and len(answer.raw_output_contents[0]) == 32 * 32 * 3
            assert ("x-request-id", "mine") in list(await call.trailing_metadata())
            (record,) = await finished(made)
            assert (record.outcome, record.model, record.photos, record.pixels) == (Outcome.OK, "upsnet", 1, 1024)
            assert record.bytes_in == make_request("mine").ByteSize() and record.bytes_out == answer.ByteSize()
            assert 0 < record.served < record.total

    asyncio.run(main())


def test_the_callers_names_are_kept() -> None:
    async def main() -> None:
        async with bench() as made:
            metadata = (("x-request-id", "from-header"), ("traceparent", "00-aa-bb-01"))
            await made.infer(make_request(""), metadata=metadata)
            await made.infer(make_request("körper\n"))
            first, second = await finished(made, 2)
            assert (first.request_id, first.traceparent) == ("from-header", "00-aa-bb-01")
            assert len(second.request_id) == 32, "a name that no header can carry is replaced"

    asyncio.run(main())


@pytest.mark.parametrize("path", [*(f"{SERVICE}/{name}" for name in CLOSED), f"{SERVICE}/Nothing", "a.b/C"])
def test_everything_else_is_closed(path: str) -> None:
    async def main() -> None:
        async with bench() as made:
            error = await fails(made.channel.unary_unary(f"/{path}")(b""))
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED
            assert error.details() == f"{path.rpartition('/')[2]} is closed on this server"
            (record,) = await finished(made)
            assert record.outcome == Outcome.FORBIDDEN
            assert made.triton.calls == []

    asyncio.run(main())


def test_the_list_of_closed_calls_is_not_empty() -> None:
    assert {"RepositoryModelLoad", "SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "LogSettings"} < set(CLOSED)


def test_metadata_comes_from_triton_and_waits_for_it() -> None:
    async def main() -> None:
        async with bench() as made:
            made.backend.set(State.STARTING, "no model has answered")
            call = asyncio.ensure_future(made.stub.ServerMetadata(pb.ServerMetadataRequest()))
            await asyncio.sleep(0.05)
            assert made.triton.calls == []
            made.backend.set(State.READY)
            answer = await call
            assert answer.name == "triton"
            assert list(answer.extensions) == ["model_configuration"], "what is closed is not offered"
            await made.stub.ModelConfig(pb.ModelConfigRequest(name="upsnet"))
            assert made.triton.calls == ["ServerMetadata", "ModelConfig"]

    asyncio.run(main())


def test_a_question_with_a_book_for_a_name_is_refused() -> None:
    async def main() -> None:
        async with bench() as made:
            error = await fails(made.stub.ModelConfig(pb.ModelConfigRequest(name="x" * 100_000)))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert error.details() == "ModelConfig: a message of more than 4096 bytes"
            (record,) = await finished(made, 1)
            assert record.outcome == Outcome.INVALID

    asyncio.run(main())


def test_health_tells_the_truth_whatever_triton_says() -> None:
    async def main() -> None:
        async with bench() as made:
            health = health_pb2_grpc.HealthStub(made.channel)
            watched: list[int] = []

            async def watch() -> None:
                async for answer in health.Watch(health_pb2.HealthCheckRequest()):
                    watched.append(answer.status)

            watching = asyncio.ensure_future(watch())
            for state, ready in ((State.READY, True), (State.DEGRADED, False), (State.READY, True)):
                made.backend.set(state)
                assert (await made.stub.ServerLive(pb.ServerLiveRequest())).live
                assert (await made.stub.ServerReady(pb.ServerReadyRequest())).ready == ready
                for model in ("upsnet", "upsnet_photo"):
                    assert (await made.stub.ModelReady(pb.ModelReadyRequest(name=model))).ready == ready
                assert not (await made.stub.ModelReady(pb.ModelReadyRequest(name="other"))).ready
                status = (await health.Check(health_pb2.HealthCheckRequest(service="upsnet"))).status
                assert status == (1 if ready else 2)
                await until(lambda ready=ready: watched and watched[-1] == (1 if ready else 2))
            assert watched == [1, 2, 1]
            watching.cancel()
            error = await fails(health.Check(health_pb2.HealthCheckRequest(service="other")))
            assert error.code() == grpc.StatusCode.NOT_FOUND

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "code", "told", "outcome"),
    [
        (
            (grpc.StatusCode.INVALID_ARGUMENT, "[request id: 7] images are 0 x 0:\n no"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "images are 0 x 0: no",
            Outcome.INVALID,
        ),
        (
            (grpc.StatusCode.INTERNAL, "it broke in '/tmp/a b/model.py', region upsnet-12-8001-7\n\nAt:\n  /x/y.py(3)"),
            grpc.StatusCode.INTERNAL,
            "it broke in (a path) b/model.py', region (a region)",
            Outcome.FAILED,
        ),
        (
            (grpc.StatusCode.INTERNAL, "Stub process 'upsnet_0_0' is not healthy."),
            grpc.StatusCode.UNAVAILABLE,
            "the server is restarting; retry",
            Outcome.UNAVAILABLE,
        ),
        (
            (grpc.StatusCode.INTERNAL, "photo 1 of 4: Model upsnet - Error when running inference: Server not ready"),
            grpc.StatusCode.UNAVAILABLE,
            "the server is restarting; retry",
            Outcome.UNAVAILABLE,
        ),
        (
            (grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference input 'Server not ready'"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "unexpected inference input 'Server not ready'",
            Outcome.INVALID,
        ),
        (
            (grpc.StatusCode.INTERNAL, "size for output 'panoptic' (4 bytes) should be 9 bytes to hold the results"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "size for output 'panoptic' (4 bytes) should be 9 bytes to hold the results",
            Outcome.INVALID,
        ),
    ],
)
def test_tritons_errors_are_one_line_without_what_is_not_the_callers(
    said: tuple[grpc.StatusCode, str], code: grpc.StatusCode, told: str, outcome: Outcome
) -> None:
    async def main() -> None:
        async with bench() as made:
            made.triton.error = said
            error = await fails(made.infer())
            assert (error.code(), error.details()) == (code, told)
            (record,) = await finished(made)
            assert (record.outcome, record.message) == (outcome, told)
            assert len(made.backend.suspicions) == (outcome == Outcome.UNAVAILABLE)

    asyncio.run(main())


def test_a_server_that_dies_under_a_request_is_suspected_and_its_successor_is_found() -> None:
    async def main() -> None:
        async with bench() as made:
            made.triton.gate.clear()
            call = asyncio.ensure_future(made.infer())
            await until(lambda: made.triton.seen)
            await made.triton.die()
            error = await fails(call)
            assert (error.code(), error.details()) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is restarting; retry",
            )
            assert ("retry-after", "1") in list(error.trailing_metadata())
            assert len(made.backend.suspicions) == 1
            made.triton.gate.set()
            waiting = asyncio.ensure_future(made.infer())  # before anybody has noticed
            await asyncio.sleep(0.05)
            await made.triton.start()
            assert (await waiting).id == "r"

    asyncio.run(main())


def test_a_deadline_goes_along_and_a_cancel_is_passed_on() -> None:
    async def main() -> None:
        async with bench() as made:
            await made.infer(timeout=20)
            await made.infer()
            assert 0 < made.triton.deadlines[0] <= 21, "the caller's"
            assert 100 < made.triton.deadlines[1] <= LIMITS.max_seconds + 1, "the limits'"
            made.triton.gate.clear()
            call = made.stub.ModelInfer(make_request("gone"))
            await until(lambda: "gone" in made.triton.seen)
            call.cancel()
            await until(lambda: made.triton.cancelled == ["gone"])
            error = await fails(made.infer(make_request("late"), timeout=2))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: made.triton.cancelled == ["gone", "late"])
            records = await finished(made, 4)
            assert [record.outcome for record in records[2:]] == [Outcome.CANCELLED, Outcome.DEADLINE]

    asyncio.run(main())


def test_who_goes_while_it_waits_is_not_computed() -> None:
    async def main() -> None:
        limits = LIMITS._replace(max_photos=1, instances=1)  # two in flight
        async with bench(limits) as made:
            made.triton.gate.clear()
            first = [asyncio.ensure_future(made.infer(make_request(name))) for name in "ab"]
            await until(lambda: len(made.triton.seen) == 2)
            cancelled = made.stub.ModelInfer(make_request("cancelled"))
            late = asyncio.ensure_future(fails(made.infer(make_request("late"), timeout=0.2)))
            last = asyncio.ensure_future(made.infer(make_request("last")))
            await until(lambda: made.admission.waiting == 3)
            error = await fails(made.infer(make_request("too many")))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "busy: 3 requests wait" in (error.details() or "")
            assert {"retry-after", "grpc-retry-pushback-ms", "x-request-id"} <= {
                key for key, _ in error.trailing_metadata()
            }
            cancelled.cancel()
            assert (await late).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: made.admission.waiting == 1)
            made.triton.gate.set()
            await asyncio.gather(*first, last)
            assert sorted(made.triton.seen) == ["a", "b", "last"]

    asyncio.run(main())


def test_a_stream_answers_each_message_and_each_error() -> None:
    async def main() -> None:
        async with bench() as made:

            async def messages() -> AsyncIterator[Any]:
                yield make_request("one")
                yield make_request("large", (9, 64, 64, 3))
                yield make_request("two")

            answers = [answer async for answer in made.stub.ModelStreamInfer(messages())]
            assert [answer.infer_response.id for answer in answers] == ["one", "large", "two"]
            assert [bool(answer.error_message) for answer in answers] == [False, True, False]
            assert "more than 16384 pixels" in answers[1].error_message
            assert made.triton.seen == ["one", "two"]
            records = await finished(made, 3)
            assert [record.outcome for record in records] == [Outcome.OK, Outcome.TOO_LARGE, Outcome.OK]

    asyncio.run(main())


def test_a_huge_message_is_refused_by_its_declared_length() -> None:
    """1.5 GB declared, a megabyte sent: the refusal comes before the rest."""

    async def main() -> None:
        async with bench() as made:
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            writer.write(_headers() + _data(b"\0" + struct.pack(">I", 1_500_000_000) + bytes(8000)))
            told = b""
            async with asyncio.timeout(10):
                while b"larger than max" not in told:
                    piece = await reader.read(1 << 16)
                    assert piece, f"closed without a word: {told!r}"
                    told += piece
            writer.close()
            (record,) = await finished(made)
            assert record.outcome == Outcome.CANCELLED and made.triton.seen == []

    asyncio.run(main())


def test_a_huge_message_that_is_sent_takes_no_memory() -> None:
    async def main() -> None:
        async with bench() as made:
            await made.infer()
            before, most = _resident(), 0
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BIG_CALL, made.address, "300000000", stdout=subprocess.PIPE
            )
            sent = asyncio.ensure_future(client.communicate())
            while not sent.done():
                await asyncio.sleep(0.005)
                most = max(most, _resident())
            assert (await sent)[0] == b"RESOURCE_EXHAUSTED\n"
            assert most - before < 100 << 20

    asyncio.run(main())


def test_messages_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("serving.front.reading.GRACE", 0.0)
        limits = LIMITS._replace(max_held=2 * LIMITS.max_message)  # two half messages
        async with bench(limits) as made:
            ends = []
            for _ in range(3):
                slow = made.channel.stream_unary(f"/{SERVICE}/ModelInfer")()
                ends.append(asyncio.ensure_future(fails(slow)))
                await asyncio.sleep(0.05)
            error = await asyncio.wait_for(ends[0], 10)
            assert (error.code(), error.details()) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "the message came too slowly",
            )
            assert (await made.infer()).id == "r"
            assert not ends[2].done()
            for end in ends:
                end.cancel()

    asyncio.run(main())


def test_streams_that_say_nothing_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once, so that some are given up while others come: the youngest stay, without any grace."""

    async def main() -> None:
        monkeypatch.setattr("serving.front.reading.MOST_AWAITED", 4)
        async with bench() as made:
            idle = [asyncio.ensure_future(fails(made.stub.ModelStreamInfer().read())) for _ in range(40)]
            await until(lambda: sum(each.done() for each in idle) == 36)
            told = {(error.code(), error.details()) for error in [await each for each in idle if each.done()]}
            words = "busy: 4 newer calls and streams wait for a message; retry after 1 s"
            assert told == {(grpc.StatusCode.RESOURCE_EXHAUSTED, words)}
            assert (await made.infer()).id == "r"
            assert len(made.front._reading._started) <= 4
            for each in idle:
                each.cancel()

    asyncio.run(main())


def test_few_slow_messages_are_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("serving.front.reading.GRACE", 0.0)
        async with bench(LIMITS._replace(max_held=8 * LIMITS.max_message)) as made:
            slow = [asyncio.ensure_future(fails(made.stub.ModelStreamInfer().read())) for _ in range(5)]
            await until(lambda: len(made.front._reading._started) == 5)
            assert (await made.infer()).id == "r"
            assert len(made.front._reading._started) == 5
            for each in slow:
                each.cancel()

    asyncio.run(main())


def test_a_message_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.reading.MOST_SECONDS", 0.01)

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    with pytest.raises(Exception, match="the message came too slowly"):
        asyncio.run(Reading(LIMITS).read(silence()))


def test_a_stream_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.reading.MOST_SECONDS", 0.2)

    async def main() -> None:
        async with bench() as made:
            stream = made.stub.ModelStreamInfer()
            await stream.write(make_request("first"))
            assert (await stream.read()).infer_response.id == "first"
            error = await fails(stream.read())
            assert (error.code(), error.details()) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "the message came too slowly",
            )

    asyncio.run(main())


def test_watchers_are_few_and_none_is_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.grpc_front.MOST_WATCHERS", 1)

    async def main() -> None:
        async with bench() as made:
            watch = made.channel.unary_stream("/grpc.health.v1.Health/Watch")
            error = await fails(watch(b"\xff").read())
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            await until(lambda: made.front._watchers == 0)
            first = watch(b"")
            assert await first.read()
            error = await fails(watch(b"").read())
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            first.cancel()
            await until(lambda: made.front._watchers == 0)
            assert await watch(b"").read()

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200), bytes(range(256)) * 40, b""])
def test_garbage_on_the_port_and_connections_that_stay_do_no_harm(said: bytes) -> None:
    async def main() -> None:
        async with bench() as made:
            idle = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(20)]
            for each in idle:
                each.sendall(said)
            assert (await made.infer()).id == "r"
            for each in idle:
                each.close()
            assert (await made.infer()).id == "r"

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"\xff" * 9, b"\x0a\xff\xff\xff\xff\x7f", b"\x2a\x03abc", b"\x0b", b"\x3a\x00" * 200, b"\x2a\x00" * 200]
)
def test_a_message_that_is_none_is_refused(body: bytes) -> None:
    async def main() -> None:
        async with bench() as made:
            error = await fails(made.channel.unary_unary(f"/{SERVICE}/ModelInfer")(body))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert made.triton.seen == []
            assert (await made.infer()).id == "r"

    asyncio.run(main())


def test_a_slow_reader_keeps_nobody_waiting() -> None:
    async def main() -> None:
        async with bench() as made:
            _, slow_writer = await asyncio.open_connection("127.0.0.1", made.port, limit=1)
            body = make_request("slow", (1, 64, 64, 3)).SerializeToString()
            slow_writer.write(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1])
            )
            slow_writer.write(_headers() + _data(b"\0" + struct.pack(">I", len(body)) + body, last=True))
            await until(lambda: "slow" in made.triton.seen)  # its window is one byte: the answer never gets through
            await until(lambda: made.heard.records)
            assert made.admission.in_flight == 0
            assert made.admission.held > 64 * 64 * 3, "the answer counts until it is read"
            for _ in range(20):
                assert (await made.infer()).id == "r"
            slow_writer.close()
            await until(lambda: made.admission.held == 0)

    asyncio.run(main())


def test_ipv6() -> None:
    async def main() -> None:
        async with bench(host="::1") as made:
            assert (await made.infer()).id == "r"

    asyncio.run(main())


def test_a_port_that_is_taken_is_one_line() -> None:
    async def main() -> None:
        async with bench() as made:
            settings = FrontSettings("127.0.0.1", made.port, None, 0, LIMITS, made.folder)
            other = Front(made.fleet, settings, Heard())
            with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{made.port} for grpc"):
                await other.start()

    asyncio.run(main())


def test_a_stop_lets_what_was_accepted_end_and_refuses_the_rest() -> None:
    async def main() -> None:
        async with bench(LIMITS._replace(max_photos=1, instances=1)) as made:
            made.triton.gate.clear()
            accepted = [asyncio.ensure_future(made.infer(make_request(name))) for name in "abc"]
            await until(lambda: made.admission.waiting == 1)
            made.admission.drain()
            stopping = asyncio.ensure_future(made.front.stop(20))
            await asyncio.sleep(0.05)
            error = await fails(made.infer(make_request("new")))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            made.triton.gate.set()
            assert [answer.id for answer in await asyncio.gather(*accepted)] == ["a", "b", "c"]
            await stopping

    asyncio.run(main())


def test_a_stop_under_load_cancels_nobody() -> None:
    """Callers who keep asking until they are refused get an answer or UNAVAILABLE, as often as it is tried."""

    async def main() -> set[str]:
        async with bench(LIMITS._replace(max_waiting=1000)) as made:
            ended: list[str] = []

            async def call() -> None:
                while "UNAVAILABLE" not in ended:
                    try:
                        await made.infer()
                        ended.append("OK")
                    except grpc.aio.AioRpcError as error:
                        ended.append(error.code().name)

            callers = [asyncio.ensure_future(call()) for _ in range(48)]
            await until(lambda: len(ended) >= 48)
            made.admission.drain()
            await made.front.stop(5)
            await asyncio.gather(*callers)
            return set(ended)

    for _ in range(5):
        assert asyncio.run(main()) == {"OK", "UNAVAILABLE"}


def test_an_idle_connection_does_not_hold_up_a_stop() -> None:
    async def main() -> None:
        async with bench() as made:
            await made.infer()
            idle = socket.create_connection(("127.0.0.1", made.port))
            half = made.channel.stream_unary(f"/{SERVICE}/ModelInfer")()
            waiting = asyncio.ensure_future(fails(half))
            await asyncio.sleep(0.05)
            await asyncio.wait_for(made.front.stop(0.2), 5)
            assert (await waiting).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            idle.close()

    asyncio.run(main())


def _headers() -> bytes:
    """An HTTP/2 HEADERS frame on stream 1, as a gRPC client begins a ModelInfer."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/ModelInfer",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode() for key, value in fields.items()
    )
    return len(block).to_bytes(3, "big") + bytes([1, 4, 0, 0, 0, 1]) + block


def _data(body: bytes, last: bool = False) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([0, int(last), 0, 0, 0, 1]) + body


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
