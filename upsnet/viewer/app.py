"""The server of the page: photos come in, answers go out as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from upsnet.client.conversation import MOST_PHOTO_BYTES
from upsnet.errors import InputError, ServerError
from upsnet.named_photos import NamedPhoto
from upsnet.photos import MAX_PIXELS
from upsnet.viewer.album import Album, Answer, Entry, open_photo, packed_map, photo_name
from upsnet.viewer.difference import difference
from upsnet.viewer.guard import Guard, TooLarge, read_body, refusal
from upsnet.viewer.models import Model, Models, identity_of, timed

logger = logging.getLogger("upsnet")
STATIC = Path(__file__).parent / "static"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
AT_WORK = 2  # photos that are decoded or compared at a time
MOST_WAITING = 16  # more are refused
MOST_ARRIVING = 4  # photos whose bytes are being read: they are held in memory
Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]


class Busy(Exception):
    """Too much waits already."""


class Forgotten(Exception):
    """A photo, a model or an answer that is not here, or no more."""


class Viewer:
    """The handlers."""

    def __init__(self, models: Models, album: Album) -> None:
        self._models, self._album = models, album
        self._limiters: dict[str, anyio.CapacityLimiter] = {}  # of each model; "": of the viewer's own work
        self._waiting = self._arriving = 0

    async def models(self, _: Request) -> Response:
        told = await anyio.to_thread.run_sync(self._models.told)
        limits = {"bytes": MOST_PHOTO_BYTES, "pixels": MAX_PIXELS}
        return JSONResponse({"models": [each._asdict() for each in told], "limits": limits})

    async def photos(self, _: Request) -> Response:
        return JSONResponse({"photos": [told(entry) for entry in self._album]})

    async def add_photo(self, request: Request) -> Response:
        if self._arriving >= MOST_ARRIVING:
            raise Busy
        self._arriving += 1
        try:
            content = await read_body(request, MOST_PHOTO_BYTES)
            name = photo_name(request.query_params.get("name", ""))
            entry = await self._work(request, lambda: open_photo(content, name))
        finally:
            self._arriving -= 1
        self._album.add(entry)
        return JSONResponse(told(entry), 201)

    async def forget_photos(self, _: Request) -> Response:
        self._album.clear()
        return Response(status_code=204)

    async def image(self, request: Request) -> Response:
        entry = self._entry(request)
        return Response(entry.shown, media_type=f"image/{entry.kind.lower()}")

    async def thumb(self, request: Request) -> Response:
        return Response(self._entry(request).thumb, media_type="image/png")

    async def ask(self, request: Request) -> Response:
        entry = self._entry(request)
        try:
            model = self._models.find(request.query_params.get("model", ""))
        except KeyError:
            raise Forgotten("this model is not here any more; choose another") from None

        came = time.perf_counter()

        def work() -> dict[str, Any]:
            stages = {"waiting": time.perf_counter() - came}
            prediction, manifest = model.ask(NamedPhoto(entry.content, entry.name, entry.stem))
            stages |= prediction.stages
            with timed(stages, "packing"):
                answer = Answer.of(prediction, model.title)
                shown = packed_map(answer.view())
            self._album.keep(entry, model.id, answer)
            return {
                "photo": entry.id,
                "model": model.id,
                "title": model.title,
                "identity": identity_of(manifest),
                "words": prediction.describe(),
                "segments": answer.segments,
                "stages": [{"name": name, "seconds": seconds} for name, seconds in stages.items()],
                "size": answer.size,
                "map": shown,
            }

        return JSONResponse(await self._work(request, work, model))

    async def differences(self, request: Request) -> Response:
        a, b = (self._answer(request, request.query_params.get(name, "")) for name in "ab")
        return JSONResponse(await self._work(request, lambda: difference(a, b)))

    async def ids_file(self, request: Request) -> Response:
        entry, answer = self._entry(request), self._answer(request, request.path_params["model"])
        return attachment(await self._work(request, answer.coco_png), f"{entry.stem}.png", "image/png")

    async def json_file(self, request: Request) -> Response:
        entry, answer = self._entry(request), self._answer(request, request.path_params["model"])
        content = json.dumps(answer.coco(f"{entry.stem}.png"), indent=1, allow_nan=False).encode()
        return attachment(content, f"{entry.stem}.json", "application/json")

    def _entry(self, request: Request) -> Entry:
        try:
            return self._album.find(request.path_params["photo"])
        except KeyError:
            raise Forgotten("the viewer keeps the last photos only, and this one is gone; give it again") from None

    def _answer(self, request: Request, model: str) -> Answer:
        try:
            return self._entry(request).answers[model]
        except KeyError:
            raise Forgotten("this model has not been asked for this photo") from None

    async def _work(self, request: Request, function: Callable[[], Result], model: Model | None = None) -> Result:
        """In a thread: as many at a time as the model takes, or AT_WORK of the viewer's own work.

        Busy where too many wait; who has gone away meanwhile waits no more.
        """
        if self._waiting >= MOST_WAITING:
            raise Busy
        limiter = self._limiters.get(model.id if model else "")
        if limiter is None:  # here, because it is of the event loop that runs
            limiter = self._limiters[model.id if model else ""] = anyio.CapacityLimiter(
                model.at_once if model else AT_WORK
            )
        self._waiting += 1
        try:
            with anyio.CancelScope() as scope:
                watch = asyncio.create_task(when_gone(request, scope.cancel))
                try:
                    return await anyio.to_thread.run_sync(function, limiter=limiter)
                finally:
                    watch.cancel()
            raise ClientDisconnect
        finally:
            self._waiting -= 1


async def when_gone(request: Request, act: Callable[[], None]) -> None:
    """Acts when the sender of a request, which has been read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    act()


def told(entry: Entry) -> dict[str, Any]:
    """A photo, for the page."""
    return {"id": entry.id, "name": entry.name, "size": entry.size, "answered": list(entry.answers)}


def attachment(content: bytes, name: str, kind: str) -> Response:
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return Response(content, media_type=kind, headers={"Content-Disposition": disposition})


def make_app(models: Models, album: Album, local: bool = True) -> Guard:
    """The page and what it asks. local: see Guard."""
    viewer = Viewer(models, album)
    photo = "/api/photos/{photo}"
    routes = [
        *static_routes(),
        Route("/api/models", viewer.models),
        Route("/api/photos", viewer.photos),
        Route("/api/photos", viewer.add_photo, methods=["POST"]),
        Route("/api/photos", viewer.forget_photos, methods=["DELETE"]),
        Route(f"{photo}/image", viewer.image),
        Route(f"{photo}/thumb", viewer.thumb),
        Route(f"{photo}/answers", viewer.ask, methods=["POST"]),
        Route(f"{photo}/answers/{{model}}/ids.png", viewer.ids_file),
        Route(f"{photo}/answers/{{model}}/coco.json", viewer.json_file),
        Route(f"{photo}/difference", viewer.differences),
    ]
    return Guard(Starlette(routes=routes, exception_handlers=HANDLERS), local)


def static_routes() -> list[Route]:
    """The files of the page, read once: no path comes from a browser."""
    routes = []
    for file in sorted(STATIC.iterdir()):
        if file.suffix in KINDS:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            routes.append(Route(path, file_handler(file.read_bytes(), KINDS[file.suffix])))
    return routes


def file_handler(content: bytes, kind: str) -> Handler:
    async def handle(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return handle


async def on_too_large(_: Request, __: Exception) -> Response:
    return refusal(413, "photo", f"the photo has more than {MOST_PHOTO_BYTES >> 20} MiB; make it smaller")


async def on_timeout(_: Request, __: Exception) -> Response:
    return refusal(408, "photo", "the photo came too slowly; give it again")


async def on_busy(_: Request, __: Exception) -> Response:
    return refusal(503, "busy", "too many photos wait already; try again in a moment", 2)


async def on_forgotten(_: Request, error: Exception) -> Response:
    return refusal(404, "forgotten", str(error))


async def on_server_error(_: Request, error: Exception) -> Response:
    return refusal(502, "server", str(error))


async def on_input_error(_: Request, error: Exception) -> Response:
    return refusal(422, "photo", str(error))


async def on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def on_fault(_: Request, error: Exception) -> Response:
    return refusal(500, "fault", f"the viewer failed: {type(error).__name__}; its terminal has the reason")


HANDLERS: dict[Any, Any] = {
    TooLarge: on_too_large,
    TimeoutError: on_timeout,
    Busy: on_busy,
    Forgotten: on_forgotten,
    ServerError: on_server_error,
    InputError: on_input_error,
    ClientDisconnect: on_gone,
    Exception: on_fault,
}
