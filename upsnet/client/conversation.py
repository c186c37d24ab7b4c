"""What a client says to a server of photos; see upsnet/runtimes/kserve.py for what a conversation is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from upsnet.categories import Categories
from upsnet.contract import LABELS, MODEL, PHOTO, PHOTO_MODEL, PHOTO_SIZES, SEGMENTS_JSON, STAGES_JSON
from upsnet.errors import InputError, ServerError
from upsnet.geometry import collate, to_network
from upsnet.named_photos import NamedPhoto
from upsnet.photos import encoded_photo, read_photo
from upsnet.prediction import PanopticPrediction
from upsnet.result import PanopticResult, Segment
from upsnet.runtimes.address import check_grpc
from upsnet.runtimes.kserve import (
    EMPTY,
    SWITCHES,
    Ask,
    CallError,
    Infer,
    OtherVersion,
    Served,
    Server,
    Steps,
    call,
    describe,
    describe_again,
    expect,
    explain,
    infer,
    predict_tensors,
)  # fmt: skip
from upsnet.runtimes.predictor import decode_batch
from upsnet.runtimes.shared_memory import Regions

MOST_PHOTO_BYTES = 32 << 20  # that `upsnet serve` takes in one photo; a larger one is decoded here


class Opened(NamedTuple):
    """What a client knows of its server."""

    served: Served
    takes_photos: bool  # else it has the model of tensors alone
    categories: Categories
    infer: Infer  # how tensors go
    tells_stages: bool = False  # the model of photos tells how long each stage took


class Known:
    """What a client knows of its server, learnt anew where another version has come into service. same: of the
    manifest, what must not change then; see `describe_again`."""

    def __init__(self, opened: Opened, same: Mapping[str, str] = EMPTY) -> None:
        self.opened, self._same = opened, same

    def learn(self, other: OtherVersion) -> Steps[None]:
        served = yield from describe_again(self.opened.served, other, self._same)
        self.opened = yield from look_around(served, self.opened.infer)


class Health(NamedTuple):
    """Whether a photo would be answered now."""

    ready: bool
    reason: str  # why not, in one line; empty where it is ready
    server: str  # its name and version, "triton 2.51.0"; empty where it does not answer


def connect(server: Server, regions: Regions) -> Steps[Opened]:
    """Asks what is served."""
    yield partial(check_grpc, server.address, tls=server.tls)
    served = yield from describe(server, MODEL)
    yield from regions.open()
    return (yield from look_around(served, regions.infer))


def look_around(served: Served, infer: Infer) -> Steps[Opened]:
    """What else there is beside the model of tensors."""
    told = (yield from _photo_outputs(served.server)) if served.model == MODEL else None
    stages = told is not None and STAGES_JSON in told
    return Opened(served, told is not None, served.manifest.categories_table, infer, stages)


def _photo_outputs(server: Server) -> Steps[list[str] | None]:
    """What the model of photos can tell; None where there is none."""
    try:
        metadata = yield Ask("ModelMetadata", server.of_model(PHOTO_MODEL))
    except CallError as error:
        if error.status == "NOT_FOUND":
            return None
        raise (yield from explain(server, error)) from error
    return [output.name for output in metadata.outputs]


def health(server: Server) -> Steps[Health]:
    """Raises nothing: what is wrong is the reason."""
    name = ""
    try:
        metadata = yield from call(server, Ask("ServerMetadata", {}))
        name = f"{metadata.name} {metadata.version}"
        if (yield from call(server, Ask("ModelReady", server.of_model(MODEL)))).ready:
            return Health(True, "", name)
        yield from describe(server, MODEL)  # says why, where it can
    except InputError as error:
        return Health(False, str(error), name)
    return Health(False, f"{server} is not ready", name)


def predict(known: Known, photo: NamedPhoto, stages: bool = False) -> Steps[PanopticPrediction]:
    """What the version in service, or the one that the client names, finds in a photo.

    Where another version begins to serve, its answer is understood as its own: it is asked again, as it wants to be.
    """
    for _ in range(SWITCHES):
        try:
            return (yield from _predict(known.opened, photo, stages))
        except OtherVersion as other:
            yield from known.learn(other)
    return (yield from _predict(known.opened, photo, stages))


def _predict(opened: Opened, photo: NamedPhoto, stages: bool) -> Steps[PanopticPrediction]:
    """An encoded photo goes as it is, and the server decodes it. Pixels are resized here, for the model of tensors.

    So is a photo that the server won't take (a format that it lacks, too many bytes): the answer is the same. stages:
    the prediction has those of the server, where it tells them.
    """
    given, source = photo.given, photo.source
    content = (yield partial(encoded_photo, given, source)) if opened.takes_photos else None
    if content is not None and len(content) <= MOST_PHOTO_BYTES:
        wanted = (LABELS, PHOTO_SIZES, SEGMENTS_JSON, *([STAGES_JSON] if stages and opened.tells_stages else ()))
        try:
            found = yield from infer(opened.served._replace(model=PHOTO_MODEL), {PHOTO: [content]}, wanted)
        except ServerError:
            raise
        except InputError:
            given = content  # what is wrong with it is told below, as everywhere
        else:
            result = yield partial(_result, opened, found)
            again = given if isinstance(given, str) or hasattr(given, "__fspath__") else content
            read, seconds = partial(read_photo, again, source), _stages(opened, found)
            return PanopticPrediction(result, opened.categories, read, source, photo.name, seconds)
    pixels = yield partial(read_photo, given, source)
    net = yield partial(to_network, pixels, opened.served.manifest.resize)
    raw = yield from predict_tensors(opened.served, collate([net]), opened.infer)
    try:
        (result,) = yield partial(decode_batch, raw, [net])
    except InputError as error:  # of the answer: the photo was fine
        raise _does_not_fit(opened.served, error) from error
    return PanopticPrediction(result, opened.categories, pixels, source, photo.name)


def _result(opened: Opened, found: Mapping[str, Any]) -> PanopticResult:
    """The answer for one photo."""
    served = opened.served
    expect(served, found, PHOTO_SIZES, np.int32, (1, 2))
    height, width = found[PHOTO_SIZES][0]
    expect(served, found, LABELS, np.uint8, (1, height, width))
    try:
        segments = [
            Segment(
                each["id"],
                opened.categories.index_of_id(each["category_id"]),
                each["score"],
                each["area"],
                tuple(each["box"]),
            )
            for each in json.loads(found[SEGMENTS_JSON][0])
        ]
    except (KeyError, TypeError, ValueError, IndexError, InputError) as error:
        raise _does_not_fit(served, error) from error
    return PanopticResult(found[LABELS][0].astype(np.int32), segments)


def _stages(opened: Opened, found: Mapping[str, Any]) -> dict[str, float]:
    if STAGES_JSON not in found:
        return {}
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(found[STAGES_JSON][0]).items()}
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise _does_not_fit(opened.served, error) from error


def _does_not_fit(served: Served, error: Exception) -> ServerError:
    return ServerError(f"{served.server}: its answer does not fit {served.manifest.name} ({error})")
