"""The hostile client itself, against a server that behaves as it is told."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2

from serving.load_test.questions import photo_question
from tests.serving.load.fake_server import FakeTriton, fake_server
from tests.serving.soak import bombs, hostile
from tests.serving.soak.footprint import Footprint
from tests.serving.soak.hostile import Harm, Target
from tests.serving.soak.wire import grpc_call, http_post, http_status, say
from upsnet.errors import InputError
from upsnet.photos import read_photo

GOOD = photo_question("", [bytes(range(200))]).message


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with fake_server() as url:
        yield url


def test_a_call_by_hand_is_answered(address: str) -> None:
    answer = asyncio.run(say(address, grpc_call(GOOD), 20, enough=b"grpc-status"))
    assert bytes(range(199, -1, -1)) in answer  # the photo backwards, as the server has it


def test_a_call_whose_answer_is_not_read_stays_unanswered(address: str) -> None:
    assert bytes(range(199, -1, -1)) not in asyncio.run(say(address, grpc_call(GOOD, window=0), 0.5))


def test_a_claim_of_much_is_refused_before_the_rest_came(address: str) -> None:
    answer = asyncio.run(say(address, grpc_call(GOOD, length=1_500_000_000, end=False), 20, enough=b"grpc-status"))
    assert b"grpc-status" in answer


@pytest.mark.parametrize("name", bombs.photos())
def test_no_bomb_is_a_photo(name: str) -> None:
    with pytest.raises(InputError):
        read_photo(bombs.photos()[name])


def test_what_is_refused_is_no_harm(address: str) -> None:
    target = Target(address, (), (GOOD,))
    assert asyncio.run(hostile.management(target, random.Random(0))) == "UNIMPLEMENTED"


@pytest.mark.parametrize("action", [hostile.management, hostile.wrong_photo])
def test_what_is_let_in_is_harm(monkeypatch: pytest.MonkeyPatch, action: hostile.Action) -> None:
    def accept(kind: str) -> Callable[..., object]:
        return lambda *_: getattr(service_pb2, f"{kind}Response")()

    for service in service_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            monkeypatch.setattr(FakeTriton, method.name, accept(method.output_type.name.removesuffix("Response")))
    with fake_server() as url, pytest.raises(Harm, match="was accepted"):
        asyncio.run(action(Target(url, (), (GOOD,)), random.Random(0)))


def test_an_error_that_tells_of_the_inside_is_harm() -> None:
    def infer(_: int, __: object, context: grpc.ServicerContext) -> dict[str, bytes]:
        return context.abort(grpc.StatusCode.INTERNAL, 'Traceback (most recent call last): File "/x/model.py"')

    with fake_server(infer) as url, pytest.raises(Harm, match="tells of the inside"):
        asyncio.run(hostile.wrong_photo(Target(url, (), (GOOD,)), random.Random(0)))


def test_a_request_over_http_has_its_length_or_its_chunks() -> None:
    assert b"\r\nContent-Length: 3\r\n\r\nabc" in http_post("/x", b"abc")
    assert b"Content-Length" not in http_post("/x", b"", "Transfer-Encoding: chunked")
    assert http_status(b"HTTP/1.1 403 Forbidden\r\n") == 403
    assert http_status(b"") == http_status(b"\x00\x00") == 0


def test_the_memory_of_a_process_is_seen() -> None:
    footprint = Footprint(os.getpid(), "")
    before = footprint.megabytes()["service"]
    block = bytearray(os.urandom(64 << 20))
    assert 40 < footprint.megabytes()["service"] - before < 100
    assert len(block) == 64 << 20
