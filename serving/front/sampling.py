"""Where answered inference requests pass by: some are mirrored to a candidate, some of their photos are kept."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from serving.front import requests
from serving.front.requests import Asked
from serving.front.rest_request import unfold
from serving.record import Record

logger = logging.getLogger(__name__)


class Sampler(Protocol):
    """Whoever looks at what passes by. None of it may wait: the caller's answer does."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def answered(self, version: int, record: Record, asked: Asked, body: bytes, header_length: int | None) -> None: ...


class Sampling:
    """What the front calls."""

    def __init__(self, *samplers: Sampler) -> None:
        self._samplers = samplers

    async def start(self) -> None:
        for each in self._samplers:
            await each.start()

    async def stop(self) -> None:
        for each in self._samplers:
            await each.stop()

    def answered(
        self, version: int, record: Record, asked: Asked, body: bytes, header_length: int | None = None
    ) -> None:
        """That version has answered the request, and well. Returns at once and raises nothing.

        body: the message as it came: a ModelInferRequest, or, of REST, JSON; header_length: the bytes of that, where
        binary tensors follow it.
        """
        for each in self._samplers:
            try:
                each.answered(version, record, asked, body, header_length)
            except Exception:  # whatever is wrong with it, the caller has nothing to do with it
                logger.exception("request %s could not be sampled", record.request_id)

    def figures(self) -> dict[str, Any] | None:
        """Of the canary, for /health/versions; None where there was none."""
        found = (each.figures() for each in self._samplers if hasattr(each, "figures"))
        return next((figures for figures in found if figures is not None), None)


def message_of(model: str, body: bytes, rest: bool, header_length: int | None) -> tuple[Any, list[memoryview | None]]:
    """Of what `answered` is told: the ModelInferRequest without its data, and each input's bytes; None: elsewhere."""
    if rest:
        _, request, data = unfold(model, body, header_length)
        return request, data
    return requests.read(body)
