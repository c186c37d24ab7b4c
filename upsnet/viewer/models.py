"""The models that the page can ask: those of a server, one for each version that runs, and those of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from upsnet.client.conversation import Health, health
from upsnet.client.predictor import PhotoTritonPredictor
from upsnet.contract import MODEL
from upsnet.errors import InputError, ServerError
from upsnet.geometry import collate, to_network
from upsnet.named_photos import NamedPhoto
from upsnet.photos import read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.connection import Connection
from upsnet.runtimes.kserve import Ask, Server, Steps, call
from upsnet.runtimes.open import find_model, open_source
from upsnet.runtimes.options import RUNTIMES, SCHEME, TLS_SCHEME, RuntimeOptions
from upsnet.runtimes.predictor import Predictor, decode_batch
from upsnet.runtimes.tls import Tls

ANSWER_SECONDS = 120.0  # for a photo
LOOK_SECONDS = 3.0  # for a server to say how it is
FRESH_SECONDS = 1.0  # in which what it said is still true
RETRIES = 1  # of a server that is busy or restarts; the page asks again by itself


class Told(NamedTuple):
    """What the page is told of a model."""

    id: str  # in addresses of the page
    title: str  # for people
    state: str  # "ready"; "waiting": opened when it is first asked; "failed"
    reason: str  # why it is not ready, in one line
    device: str
    network: str  # its name; empty until it is opened
    categories: list[dict[str, object]]


class Model:
    """One model of this process, opened when it is first asked, and asked for one photo at a time."""

    def __init__(self, id: str, title: str, options: RuntimeOptions) -> None:
        self.id, self.title, self._options = id, title, options
        self._predictor: Predictor | None = None
        self._failed = ""
        self._busy = threading.Lock()

    def told(self) -> Told:
        predictor, failed = self._predictor, self._failed
        state = "failed" if failed else "ready" if predictor else "waiting"
        return tell(self, state, failed, predictor)

    def ask(self, photo: NamedPhoto) -> tuple[PanopticPrediction, list[tuple[str, float]]]:
        """The answer and its stages in seconds. InputError where the photo, or the model, is no use."""
        stages: list[tuple[str, float]] = []
        step = partial(timed, stages)
        with self._busy:
            predictor = self._open()
            with step("decode"):
                pixels = read_photo(photo.given, photo.source)
            with step("resize"):
                net = to_network(pixels, predictor.manifest.resize)
            with step("network"):
                raw = predictor.predict(collate([net]))
            with step("restore"):
                (result,) = decode_batch(raw, [net])
        categories = predictor.manifest.categories_table
        return PanopticPrediction(result, categories, pixels, photo.source, photo.name), stages

    def _open(self) -> Predictor:
        if self._predictor is None:
            try:
                self._predictor = open_source(self._options)
                self._failed = ""
            except InputError as error:
                self._failed = str(error)
                raise ServerError(str(error)) from error  # no fault of the photo
        return self._predictor

    def close(self) -> None:
        with self._busy:
            if self._predictor is not None:
                self._predictor.close()
                self._predictor = None


class ServerModel:
    """One version of a server's model, or the one in service."""

    def __init__(self, id: str, title: str, watch: Watch, version: str) -> None:
        self.id, self.title, self._watch, self._version = id, title, watch, version
        self._predictor: PhotoTritonPredictor | None = None
        self._opening = threading.Lock()

    def told(self) -> Told:
        found = self._watch.look()
        if not found.ready:
            return tell(self, "failed", found.reason, None)
        try:
            return tell(self, "ready", "", self._open())
        except InputError as error:
            return tell(self, "failed", str(error), None)

    def ask(self, photo: NamedPhoto) -> tuple[PanopticPrediction, list[tuple[str, float]]]:
        stages: list[tuple[str, float]] = []
        try:
            predictor = self._open()
            with timed(stages, "server"):
                (prediction,) = predictor.answers(iter([photo]), 1)
        except ServerError:
            self.close()  # whatever answers there next is asked anew what it serves
            raise
        return prediction, stages

    def _open(self) -> PhotoTritonPredictor:
        with self._opening:
            if self._predictor is None:
                server = self._watch.server
                url = f"{TLS_SCHEME if server.tls else SCHEME}{server.address}"
                self._predictor = PhotoTritonPredictor(url, timeout=ANSWER_SECONDS, tls=server.tls, retries=RETRIES)
            return self._predictor

    def close(self) -> None:
        with self._opening:
            if self._predictor is not None:
                self._predictor.close()
                self._predictor = None


class Watch:
    """A server: whether it answers now, and which versions run."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        self.server = Server.of(url, tls, LOOK_SECONDS, 0)
        self.versions: tuple[str, ...] = ()
        self._connection = Connection(self.server)
        self._looking = threading.Lock()
        self._found, self._looked = Health(False, "it has not been asked yet", ""), float("-inf")

    def look(self) -> Health:
        """How it is, as it said at most FRESH_SECONDS ago."""
        with self._looking:
            if time.monotonic() > self._looked + FRESH_SECONDS:
                self._found = self._connection.run(health(self.server))
                if self._found.ready:
                    self.versions = self._connection.run(_versions(self.server))
                self._looked = time.monotonic()
            return self._found

    def close(self) -> None:
        self._connection.close()


class Models:
    """All that the page can ask. A server's versions come and go."""

    def __init__(self, servers: Sequence[str], sources: Sequence[str], tls: Tls | None = None) -> None:
        """servers: grpc://host:port. sources: what `upsnet.load` takes. InputError for what is none of these."""
        self._watches: dict[str, Watch] = {}
        self._models: dict[str, Model | ServerModel] = {}
        for number, url in enumerate(servers):
            watch = self._watches[f"s{number}"] = Watch(url, tls)
            self._models[f"s{number}"] = ServerModel(f"s{number}", f"server {watch.server.address}", watch, "")
        for number, source in enumerate(sources):
            runtime, _ = find_model(source)
            options = RuntimeOptions(source)
            self._models[f"m{number}"] = Model(f"m{number}", f"{source} ({RUNTIMES[runtime].title})", options)

    def told(self) -> list[Told]:
        """Servers are asked how they are: at most LOOK_SECONDS each."""
        return [model.told() for model in self._models.values()]

    def find(self, id: str) -> Model | ServerModel:
        """KeyError where there is none, or no more."""
        return self._models[id]

    def close(self) -> None:
        for each in (*self._models.values(), *self._watches.values()):
            each.close()


def tell(model: Model | ServerModel, state: str, reason: str, predictor: Predictor | None) -> Told:
    manifest = predictor.manifest if predictor else None
    return Told(
        model.id,
        model.title,
        state,
        reason,
        predictor.device_name if predictor else "",
        manifest.name if manifest else "",
        manifest.categories_table.to_coco() if manifest else [],
    )


@contextmanager
def timed(stages: list[tuple[str, float]], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stages.append((name, time.perf_counter() - started))


def _versions(server: Server) -> Steps[tuple[str, ...]]:
    try:
        metadata = yield from call(server, Ask("ModelMetadata", {"name": MODEL}))
    except InputError:
        return ()
    return tuple(metadata.versions)
