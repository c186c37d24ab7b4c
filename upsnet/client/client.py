"""The client that waits for its answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Literal, TypeGuard, TypeVar, overload

from upsnet.categories import Categories
from upsnet.client.conversation import Health, Known, connect, health, predict
from upsnet.errors import InputError, ServerError
from upsnet.files import PathLike
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto, one_photo, photos_of, stream_photos
from upsnet.photos import Photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.connection import Calls, Connection
from upsnet.runtimes.kserve import RETRIES, Server
from upsnet.runtimes.options import SERVER
from upsnet.runtimes.tls import Tls

CONCURRENCY = 8  # a server of this project is busy with it
MOST_CONCURRENCY = 256
OnePhoto = TypeVar("OnePhoto", bound=Photo)


class Client:
    """A server that runs UPSNet, over gRPC. Use it as a context manager, or call `close`. Threads may share it.

        with upsnet.Client("grpc://127.0.0.1:8001") as client:
            client.predict("street.jpg").overlay()

    url: grpc://host:port, or grpcs://host:port for TLS. timeout: seconds for each answer, retries included; the server
    is told. retries: 0 to 4, of a server that restarts or is busy; nothing else is asked twice. tls: True, the file of
    the authority of the server's certificate, or `upsnet.Tls(ca, cert, key)` with a certificate of the client.
    shared_memory: for pixels to a server on this machine; by itself where that is faster, True or False. version: of
    the model, a number, which then alone is asked; by itself the one in service. Where another version comes into
    service, the client follows: each prediction has the categories of the version that made it.

    Raises InputError, in one line, for what is no photo; ServerError, which is one, where the server is the reason.
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
        self._connection = Connection(Server.of(url, tls, timeout, retries, shared_memory, version))
        try:
            self._known = Known(self._connection.run(connect(self._connection.server, self._connection.regions)))
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the server said of its model, last."""
        return self._known.opened.served.manifest

    @property
    def categories(self) -> Categories:
        return self._known.opened.categories

    @overload
    def predict(self, photo: Photo) -> PanopticPrediction: ...

    @overload
    def predict(self, photo: list[OnePhoto] | tuple[OnePhoto, ...]) -> list[PanopticPrediction]: ...

    def predict(
        self, photo: Photo | list[OnePhoto] | tuple[OnePhoto, ...]
    ) -> PanopticPrediction | list[PanopticPrediction]:
        """What is in a photo, as `Model.predict` has it; of a list, a list, for which several are asked at once."""
        if isinstance(photo, list | tuple):
            photos = photos_of(photo)
            return [each.result() for _, each in in_flight(self._connection, self._known, photos, CONCURRENCY)]
        return self._connection.run(predict(self._known, one_photo(photo, "client.stream")))

    @overload
    def stream(
        self, source: PathLike | Iterable[Photo], concurrency: int = ..., errors: Literal["raise"] = ...
    ) -> Generator[tuple[str, PanopticPrediction]]: ...

    @overload
    def stream(
        self, source: PathLike | Iterable[Photo], concurrency: int = ..., *, errors: Literal["yield"]
    ) -> Generator[tuple[str, PanopticPrediction | InputError]]: ...

    def stream(
        self,
        source: PathLike | Iterable[Photo],
        concurrency: int = CONCURRENCY,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Generator[tuple[str, PanopticPrediction | InputError]]:
        """Where each photo came from, and what is in it, in their order. Memory does not grow with their number.

        source: as for `Model.stream`. concurrency: how many the server is asked for at once. errors: "yield" gives the
        InputError of a photo that cannot be read in the place of its prediction, and goes on; a server that fails is
        raised always.
        """
        check_stream(concurrency, errors)
        return self._stream(stream_photos(source), concurrency, errors)

    def _stream(
        self, photos: Iterator[NamedPhoto], concurrency: int, errors: str
    ) -> Generator[tuple[str, PanopticPrediction | InputError]]:
        with closing(in_flight(self._connection, self._known, photos, concurrency)) as waiting:
            for source, future in waiting:
                error = future.exception()
                yield source, error if errors == "yield" and is_of_photo(error) else future.result()

    def health(self) -> Health:
        """Would a photo be answered now? Raises nothing: a server that is not there is not ready."""
        return self._connection.run(health(self._connection.server))

    def close(self) -> None:
        """End the connection. A second call does nothing."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._connection.server.address}: {self.manifest.name}>"


def in_flight(
    connection: Connection, known: Known, photos: Iterator[NamedPhoto], at_once: int
) -> Generator[tuple[str, Future[PanopticPrediction]]]:
    """The source of each photo and its prediction, the next one as soon as it is there. Closing it ends the calls."""
    calls, waiting = Calls(), deque[tuple[str, Future[PanopticPrediction]]]()
    with ThreadPoolExecutor(at_once, thread_name_prefix="upsnet-client") as pool:
        try:
            for photo in photos:
                waiting.append((photo.source, pool.submit(connection.run, predict(known, photo.kept()), calls)))
                # Those that are done wait for their turn beside those that are asked for.
                while waiting and (len(waiting) > 2 * (at_once - 1) or waiting[0][1].done()):
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()
            calls.end()


def is_of_photo(error: BaseException | None) -> TypeGuard[InputError]:
    """Rather than of the server, which would fail for the next photo too."""
    return isinstance(error, InputError) and not isinstance(error, ServerError)


def check_stream(concurrency: object, errors: object) -> None:
    if not (isinstance(concurrency, int) and 1 <= concurrency <= MOST_CONCURRENCY):
        raise InputError(f"concurrency {concurrency!r}: give 1 to {MOST_CONCURRENCY}")
    if errors not in ("raise", "yield"):
        raise InputError(f"errors {errors!r}: give 'raise' or 'yield'")
