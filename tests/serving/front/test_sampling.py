"""Which requests pass by the samplers: those that the version in service has answered, once each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from serving.front.sampling import Sampling, message_of
from tests.serving.front.fake import Bench, bench, make_request, until


class Spy:
    def __init__(self, made: Bench) -> None:
        self.passed: list[Any] = []
        made.front._sampling = Sampling(SimpleNamespace(answered=self._answered))  # type: ignore[arg-type]

    def _answered(self, version: int, record: Any, asked: Any, body: bytes, header_length: int | None) -> None:
        request, data = message_of(record.model, body, record.protocol == "http", header_length)
        self.passed.append((version, request.id, asked.photos, len(data[0] or b""), header_length))


def test_an_inference_and_each_message_of_a_stream() -> None:
    async def main() -> None:
        async def messages() -> AsyncIterator[Any]:
            for name in ("b", "c"):
                yield make_request(name)

        async with bench() as made:
            spy = Spy(made)
            await made.infer(make_request("a"))
            assert [each.infer_response.id async for each in made.stub.ModelStreamInfer(messages())] == ["b", "c"]
            assert spy.passed == [(1, name, 1, 32 * 32 * 3, None) for name in "abc"]

    asyncio.run(main())


def test_neither_what_failed_nor_what_was_refused() -> None:
    async def main() -> None:
        async with bench() as made:
            spy = Spy(made)
            made.triton.error = grpc.StatusCode.INTERNAL, "the model failed"
            for request in (make_request("failed"), make_request("refused", (1, 256, 256, 3))):
                with pytest.raises(grpc.aio.AioRpcError):
                    await made.infer(request)
            await until(lambda: len(made.heard.records) == 2)
            assert spy.passed == []

    asyncio.run(main())
