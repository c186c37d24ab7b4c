"""The front's gRPC, before a Triton that does as it is told."""

from __future__ import annotations

import asyncio

from serving.record import Outcome
from tests.serving.front.fake import bench, make_request, until


def test_an_inference_goes_through_as_it_is() -> None:
    async def main() -> None:
        async with bench() as made:
            call = made.stub.ModelInfer(make_request("mine"))
            answer = await call
            assert answer.id == "mine" and len(answer.raw_output_contents[0]) == 32 * 32 * 3
            assert ("x-request-id", "mine") in list(await call.trailing_metadata())
            await until(lambda: made.heard.records)
            record = made.heard.records[0]
            assert (record.outcome, record.model, record.photos, record.pixels) == (Outcome.OK, "upsnet", 1, 1024)
            assert record.bytes_in == make_request("mine").ByteSize() and record.bytes_out == answer.ByteSize()

    asyncio.run(main())
