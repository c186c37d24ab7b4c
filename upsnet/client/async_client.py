"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Literal, overload

from upsnet.categories import Categories
from upsnet.client.client import CONCURRENCY, OnePhoto, check_stream, is_of_photo
from upsnet.client.conversation import Health, Known, Opened, connect, health, predict
from upsnet.errors import InputError, ServerError
from upsnet.files import PathLike
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto, one_photo, photos_of, stream_photos
from upsnet.photos import Photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.connection import call_error, load_packages, open_channel
from upsnet.runtimes.kserve import RETRIES, Answer, Ask, Server, Step, Steps, hold
from upsnet.runtimes.options import SERVER
from upsnet.runtimes.shared_memory import Regions
from upsnet.runtimes.tls import Tls


class AsyncClient:
    """`upsnet.Client` for asyncio: the same arguments, methods and errors. A task that is cancelled cancels its call.

        async with upsnet.AsyncClient("grpc://127.0.0.1:8001") as client:
            prediction = await client.predict("street.jpg")
            async for path, prediction in client.stream("holiday"):
                ...

    What takes a while (files, decoding) is done in threads. `async with`, or `await client.open()`, asks the server
    what it serves; everything else needs that.
    """

    def __init__(
        self,
        url: str = SERVER,
        *,
        timeout: float = 120.0,
        retries: int = RETRIES,
        tls: Tls | PathLike | bool | None = None,
        shared_memory: bool | None = None,
        version: int | None = None,
    ) -> None:
        self._server = Server.of(url, tls, timeout, retries, shared_memory, version)
        self._regions = Regions(self._server)
        self._grpc, self._messages, self._new_stub = load_packages()
        self._channel: Any = None
        self._maybe_known: Known | None = None

    async def open(self) -> None:
        """Connect. The client belongs to the event loop in which this is done."""
        await self.close()
        self._channel = open_channel(self._server, self._grpc, self._grpc.aio)
        self._stub = self._new_stub(self._channel)
        try:
            self._maybe_known = Known(await self._run(connect(self._server, self._regions)))
        except BaseException:
            await self.close()
            raise

    @property
    def _known(self) -> Known:
        if self._maybe_known is None:
            raise InputError(f"the client of {self._server.address} is not open: use `async with`, or await its open()")
        return self._maybe_known

    @property
    def _opened(self) -> Opened:
        return self._known.opened

    @property
    def manifest(self) -> Manifest:
        """What the server said of its model, last."""
        return self._opened.served.manifest

    @property
    def categories(self) -> Categories:
        return self._opened.categories

    @overload
    async def predict(self, photo: Photo) -> PanopticPrediction: ...

    @overload
    async def predict(self, photo: list[OnePhoto] | tuple[OnePhoto, ...]) -> list[PanopticPrediction]: ...

    async def predict(
        self, photo: Photo | list[OnePhoto] | tuple[OnePhoto, ...]
    ) -> PanopticPrediction | list[PanopticPrediction]:
        """See `Client.predict`."""
        if isinstance(photo, list | tuple):
            async with aclosing(self._in_flight(photos_of(photo), CONCURRENCY)) as waiting:
                return [await task async for _, task in waiting]
        return await self._run(predict(self._known, one_photo(photo, "client.stream")))

    @overload
    def stream(
        self, source: PathLike | Iterable[Photo], concurrency: int = ..., errors: Literal["raise"] = ...
    ) -> AsyncGenerator[tuple[str, PanopticPrediction]]: ...

    @overload
    def stream(
        self, source: PathLike | Iterable[Photo], concurrency: int = ..., *, errors: Literal["yield"]
    ) -> AsyncGenerator[tuple[str, PanopticPrediction | InputError]]: ...

    def stream(
        self,
        source: PathLike | Iterable[Photo],
        concurrency: int = CONCURRENCY,
        errors: Literal["raise", "yield"] = "raise",
    ) -> AsyncGenerator[tuple[str, PanopticPrediction | InputError]]:
        """See `Client.stream`. The source is read in a thread."""
        check_stream(concurrency, errors)
        return self._stream(stream_photos(source), concurrency, errors)

    async def _stream(
        self, photos: Iterator[NamedPhoto], concurrency: int, errors: str
    ) -> AsyncGenerator[tuple[str, PanopticPrediction | InputError]]:
        async with aclosing(self._in_flight(photos, concurrency)) as waiting:
            async for source, task in waiting:
                await asyncio.wait([task])
                error = task.exception()
                yield source, error if errors == "yield" and is_of_photo(error) else task.result()

    async def _in_flight(
        self, photos: Iterator[NamedPhoto], at_once: int
    ) -> AsyncGenerator[tuple[str, asyncio.Task[PanopticPrediction]]]:
        """The source of each photo and its prediction, as `in_flight` has them. Closing it cancels the calls."""
        known, gate = self._known, asyncio.Semaphore(at_once)
        waiting = deque[tuple[str, asyncio.Task[PanopticPrediction]]]()

        async def answer(photo: NamedPhoto) -> PanopticPrediction:
            async with gate:
                return await self._run(predict(known, photo))

        try:
            while (photo := await asyncio.to_thread(next, photos, None)) is not None:
                waiting.append((photo.source, asyncio.create_task(answer(photo.kept()))))
                while waiting and (len(waiting) > 2 * (at_once - 1) or waiting[0][1].done()):
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._run(health(self._opened.served.server))

    async def close(self) -> None:
        """End the connection. A second call does nothing."""
        if self._channel is not None:
            try:
                await self._run(self._regions.close())
            finally:
                await self._channel.close()
                self._channel = self._maybe_known = None

    async def __aenter__(self) -> AsyncClient:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        name = self._opened.served.manifest.name if self._maybe_known else "not open"
        return f"<AsyncClient of {self._server.address}: {name}>"

    async def _run(self, steps: Steps[Answer]) -> Answer:
        """Holds a conversation, as Connection.run does."""
        return await hold(steps, self._take)

    async def _take(self, step: Step) -> Any:
        return await (self._call(step) if isinstance(step, Ask) else asyncio.to_thread(step))

    async def _call(self, ask: Ask) -> Any:
        if self._channel is None:
            raise ServerError(f"the connection to {self._server} is closed; open another")
        request = getattr(self._messages, f"{ask.method}Request")(**ask.fields)
        try:
            timeout = self._server.timeout if ask.timeout is None else ask.timeout
            calling = getattr(self._stub, ask.method)(request, timeout=timeout, metadata=ask.metadata)
            answer = await calling
            if ask.told is not None:
                ask.told.update(dict(await calling.initial_metadata()))
            return answer
        except self._grpc.RpcError as error:
            raise call_error(error) from None
