"""The models that the page can ask: a server's, one for each version that runs, and those of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from upsnet.client.conversation import Opened, health, look_around, predict
from upsnet.contract import MODEL
from upsnet.errors import InputError, ServerError
from upsnet.geometry import collate, to_network
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto
from upsnet.photos import read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.connection import Connection
from upsnet.runtimes.kserve import Server, Steps, describe
from upsnet.runtimes.open import find_model, open_source
from upsnet.runtimes.options import RUNTIMES, RuntimeOptions
from upsnet.runtimes.predictor import Predictor, decode_batch
from upsnet.runtimes.tls import Tls

ANSWER_SECONDS = 120.0  # for a photo
LOOK_SECONDS = 3.0  # for a server to say how it is
FRESH_SECONDS = 1.0  # in which what it said is still true
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


class Model(Protocol):
    """What the page can ask. Threads may share it."""

    id: str
    title: str
    place: str

    def told(self) -> Told: ...

    def ask(self, photo: NamedPhoto) -> PanopticPrediction:
        """With its stages. InputError where the photo is no use, ServerError where the model is."""
        ...

    def close(self) -> None: ...


class OwnModel:
    """A model of this process: opened when it is first asked, and asked for one photo at a time."""

    def __init__(self, id: str, title: str, place: str, opener: Callable[[], Predictor]) -> None:
        self.id, self.title, self.place, self._opener = id, title, place, opener
        self._predictor: Predictor | None = None
        self._failed = ""
        self._busy = threading.Lock()

    def told(self) -> Told:
        predictor = self._predictor
        if predictor is not None:
            return _told(self, "ready", "", predictor.device_name, predictor.manifest)
        return _told(self, "failed" if self._failed else "waiting", self._failed)

    def ask(self, photo: NamedPhoto) -> PanopticPrediction:
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
        return PanopticPrediction(result, categories, pixels, photo.source, photo.name, stages)

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
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._opened: Opened | None = None
        self._reason = ""

    def look(self) -> Opened:
        """What it serves, as it said at most FRESH_SECONDS ago. ServerError where it does not answer now."""
        with self._looking:
            if time.monotonic() > self._looked + FRESH_SECONDS:
                self._opened, self._reason = None, ""
                try:
                    self._opened = self._looks.run(self._open())
                except InputError as error:
                    self._reason = str(error)
                self._looked = time.monotonic()
            if self._opened is None:
                raise ServerError(self._reason)
            return self._opened

    def _open(self) -> Steps[Opened]:
        found = yield from health(self._looks.server)
        if not found.ready:
            raise ServerError(found.reason)
        served = yield from describe(self._looks.server, MODEL)
        return (yield from look_around(served._replace(server=self.connection.server), self.connection.regions))

    def close(self) -> None:
        self._looks.close()
        self.connection.close()


class ServerModel:
    """The version of a server's model that is in service."""

    def __init__(self, id: str, server: Answering) -> None:
        self.id, self.title, self.place, self._server = id, f"Triton, {server.address}", server.address, server

    def told(self) -> Told:
        try:
            opened = self._server.look()
        except ServerError as error:
            return _told(self, "failed", str(error))
        return _told(self, "ready", "", "the server's", opened.served.manifest)

    def ask(self, photo: NamedPhoto) -> PanopticPrediction:
        opened = self._server.look()
        whole: dict[str, float] = {}
        with timed(whole, "server"):
            prediction = self._server.connection.run(predict(opened, photo, stages=True))
        told = dict(prediction.stages)
        rest = {"queue, transport": whole["server"] - sum(told.values())} if told else whole
        return replace(prediction, stages={**told, **rest})

    def close(self) -> None:
        """Its server is closed by itself."""


class Models:
    """All that the page can ask."""

    def __init__(self, servers: Sequence[Answering], models: Sequence[Model]) -> None:
        self._servers = servers
        served = [ServerModel(f"s{number}", server) for number, server in enumerate(servers)]
        self._models: Mapping[str, Model] = {model.id: model for model in (*served, *models)}

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
        return [model.told() for model in self._models.values()]

    def find(self, id: str) -> Model:
        """KeyError where there is none, or no more."""
        return self._models[id]

    def close(self) -> None:
        for model in self._models.values():
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
    return Told(model.id, model.title, model.place, state, reason, device, manifest.name if manifest else "", names)


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - started
