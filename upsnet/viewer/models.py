"""The models that the page can ask: a server's, one for each version that runs, and those of this process."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from upsnet.client.conversation import Known, Opened, health, look_around, predict
from upsnet.contract import MODEL
from upsnet.errors import InputError, ServerError
from upsnet.geometry import collate, to_network
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto
from upsnet.photos import read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.connection import Connection
from upsnet.runtimes.kserve import Ask, Server, Steps, call, describe
from upsnet.runtimes.open import find_model, open_source
from upsnet.runtimes.options import RUNTIMES, RuntimeOptions
from upsnet.runtimes.predictor import Predictor, decode_batch
from upsnet.runtimes.tls import Tls

ANSWER_SECONDS = 120.0  # for a photo
LOOK_SECONDS = 3.0  # for a server to say how it is
FRESH_SECONDS = 1.0  # in which what it said is still true
AT_ONCE = 2  # photos that a server's model is asked for
RETRIES = 1  # of a server that is busy or restarts; the page asks again by itself


class Told(NamedTuple):
    """What the page is told of a model."""

    id: str  # in the page's addresses
    title: str  # for people, short
    place: str  # for people, in full: an address, or a path
    state: str  # "ready"; "waiting": it is opened when it is first asked; "failed"
    reason: str  # why it has failed, in one line
    device: str  # what computes; empty until that is known
    network: str  # its name; empty until it is known
    classes: list[str]  # their names; empty until they are known
    identity: str  # of the network, another one for each; empty until it is known


class Model(Protocol):
    """What the page can ask. Threads may share it."""

    id: str
    place: str
    at_once: int  # photos that it is asked for

    @property
    def title(self) -> str: ...

    def told(self) -> Told: ...

    def ask(self, photo: NamedPhoto) -> tuple[PanopticPrediction, Manifest]:
        """With its stages, and what answered. InputError where the photo is no use, ServerError where the model is."""
        ...

    def close(self) -> None: ...


class OwnModel:
    """A model of this process: opened when it is first asked, and asked for one photo at a time."""

    at_once = 1

    def __init__(self, id: str, title: str, place: str, opener: Callable[[], Predictor]) -> None:
        self.id, self.place, self._title, self._opener = id, place, title, opener
        self._predictor: Predictor | None = None
        self._failed = ""
        self._busy = threading.Lock()

    @property
    def title(self) -> str:
        return self._title

    def told(self) -> Told:
        predictor = self._predictor
        if predictor is not None:
            return _told(self, "ready", "", predictor.device_name, predictor.manifest)
        return _told(self, "failed" if self._failed else "waiting", self._failed)

    def ask(self, photo: NamedPhoto) -> tuple[PanopticPrediction, Manifest]:
        stages: dict[str, float] = {}
        with self._busy:
            if self._predictor is None:
                with timed(stages, "opening, once"):
                    predictor = self._open()
            else:
                predictor = self._predictor
            with timed(stages, "decode"):
                pixels = read_photo(photo.given, photo.source)
            with timed(stages, "resize"):
                net = to_network(pixels, predictor.manifest.resize)
            with timed(stages, "network"):
                raw = predictor.predict(collate([net]))
            with timed(stages, "restore"):
                (result,) = decode_batch(raw, [net])
        categories = predictor.manifest.categories_table
        prediction = PanopticPrediction(result, categories, pixels, photo.source, photo.name, stages)
        return prediction, predictor.manifest

    def _open(self) -> Predictor:
        try:
            self._predictor = self._opener()
        except InputError as error:
            self._failed = str(error)
            raise ServerError(str(error)) from error  # no fault of the photo
        self._failed = ""
        return self._predictor

    def close(self) -> None:
        with self._busy:
            if self._predictor is not None:
                self._predictor.close()
                self._predictor = None


class Answering:
    """A server that is watched, and the connections to it, which outlive its restarts."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        self._looks = Connection(Server.of(url, tls, LOOK_SECONDS, 0))
        self.connection = Connection(Server.of(url, tls, ANSWER_SECONDS, RETRIES))
        self.address = self.connection.server.address
        self.running: tuple[str, ...] = ()  # versions, as it said when it last answered
        self.in_service = ""  # the version; empty where it does not tell
        self._looking = threading.Lock()
        self._seen: dict[str, tuple[float, Opened | ServerError]] = {}  # by version: when, and what

    def look(self, version: str = "") -> Opened:
        """What it serves, as it said at most FRESH_SECONDS ago. ServerError where it does not answer now.

        version: a number; empty: the one in service.
        """
        with self._looking:
            looked, found = self._seen.get(version, (float("-inf"), None))
            if found is None or time.monotonic() > looked + FRESH_SECONDS:
                try:
                    found = self._looks.run(self._open(version))
                except InputError as error:
                    found = ServerError(str(error))
                self._seen[version] = time.monotonic(), found
        if isinstance(found, ServerError):
            raise found
        return found

    def _open(self, version: str) -> Steps[Opened]:
        server = self._looks.server._replace(version=version)
        state = yield from health(server)
        if not state.ready:
            raise ServerError(state.reason)
        served = yield from describe(server, MODEL)
        if not version:
            self.running = tuple((yield from call(server, Ask("ModelMetadata", server.of_model(MODEL)))).versions)
            self.in_service = served.version
        asked = self.connection.server._replace(version=version)
        return (yield from look_around(served._replace(server=asked), self.connection.regions.infer))

    def close(self) -> None:
        self._looks.close()
        self.connection.close()


class ServerModel:
    """A version of a server's model; without one, the version in service."""

    at_once = AT_ONCE

    def __init__(self, id: str, server: Answering, version: str = "") -> None:
        self.id, self.place, self._server, self._version = id, server.address, server, version

    @property
    def title(self) -> str:
        server = self._server
        if self._version:
            return f"Version {self._version} at {server.address}"
        many = len(server.running) > 1 and server.in_service
        return f"{f'In service (version {server.in_service})' if many else 'Triton'} at {server.address}"

    def told(self) -> Told:
        try:
            opened = self._server.look(self._version)
        except ServerError as error:
            return _told(self, "failed", str(error))
        return _told(self, "ready", "", "the server's", opened.served.manifest)

    def ask(self, photo: NamedPhoto) -> tuple[PanopticPrediction, Manifest]:
        known = Known(self._server.look(self._version))
        whole: dict[str, float] = {}
        with timed(whole, "server"):
            prediction = self._server.connection.run(predict(known, photo, stages=True))
        if not self._version:
            self._server.in_service = known.opened.served.version  # of which the answer is
        told = dict(prediction.stages)
        rest = {"queue, transport": max(0.0, whole["server"] - sum(told.values()))} if told else whole
        return replace(prediction, stages={**told, **rest}), known.opened.served.manifest

    def close(self) -> None:
        """Its server is closed by itself."""


class Models:
    """All that the page can ask."""

    def __init__(self, servers: Sequence[Answering], models: Sequence[Model]) -> None:
        self._servers, self._own = servers, models

    @classmethod
    def of(cls, urls: Sequence[str], sources: Sequence[RuntimeOptions], tls: Tls | None = None) -> Models:
        """urls: of servers. sources: with what `upsnet.load` takes as `run`. InputError for what is none of it."""
        models = [
            OwnModel(f"m{number}", title, str(options.run), partial(open_source, options))
            for number, (options, title) in enumerate(zip(sources, _titles(sources), strict=True))
        ]
        return cls([Answering(url, tls) for url in urls], models)

    def told(self) -> list[Told]:
        """Servers are asked how they are: at most LOOK_SECONDS each."""
        for server in self._servers:
            with suppress(ServerError):
                server.look()  # which versions there are
        return [model.told() for model in self._all()]

    def find(self, id: str) -> Model:
        """KeyError where there is none, or no more."""
        return {model.id: model for model in self._all()}[id]

    def _all(self) -> Iterator[Model]:
        for number, server in enumerate(self._servers):
            yield ServerModel(f"s{number}", server)
            for version in server.running if len(server.running) > 1 else ():
                yield ServerModel(f"s{number}v{version}", server, version)
        yield from self._own

    def close(self) -> None:
        for model in self._own:
            model.close()
        for server in self._servers:
            server.close()


def _titles(sources: Sequence[RuntimeOptions]) -> list[str]:
    """The runtime, and as many of the last parts of the path as tell it from the others."""
    runtimes = [RUNTIMES[find_model(each.run, each.runtime)[0]].title for each in sources]
    paths = [Path(each.run or "").absolute().parts for each in sources]
    for count in range(1, max(map(len, paths), default=0) + 1):
        titles = [f"{runtime}, {'/'.join(path[-count:])}" for runtime, path in zip(runtimes, paths, strict=True)]
        if len(set(titles)) == len(set(zip(runtimes, paths, strict=True))):
            break
    return titles if sources else []


def _told(model: Model, state: str, reason: str, device: str = "", manifest: Manifest | None = None) -> Told:
    names = manifest.categories_table.names if manifest else []
    name, identity = (manifest.name, identity_of(manifest)) if manifest else ("", "")
    return Told(model.id, model.title, model.place, state, reason, device, name, names, identity)


def identity_of(manifest: Manifest) -> str:
    """Of a network: its classes, its sizes and the digest of its graph."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:16]


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - started
