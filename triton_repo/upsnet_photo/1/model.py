"""UPSNet for Triton's Python backend: encoded photos in, panoptic maps of their exact sizes out.

Photos are decoded, resized and brought back here, by the functions of `upsnet predict`; the model `upsnet` of the same
server runs the network. What comes out is in upsnet/contract.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    from PIL import Image

    from upsnet.contract import INPUTS, METADATA_KEY, MODEL, OUTPUTS, OVERLAY, PHOTO
    from upsnet.errors import InputError, first_line
    from upsnet.geometry import NetworkImage, collate, to_network
    from upsnet.manifest import Manifest
    from upsnet.photo_tensors import photo_tensors
    from upsnet.photos import read_photo
    from upsnet.prediction import PanopticPrediction
    from upsnet.result import PanopticResult
    from upsnet.runtimes.predictor import RawPrediction, decode_batch
    from upsnet.stub import Counters, check_tensors
except ImportError as error:
    raise ImportError(f"the model upsnet_photo needs the package upsnet-trt in the server's Python: {error}") from None

FAILED = "the photo model failed; the server's log has the reason"
STOPS = "the server stops or restarts; retry"
STOPPING = ("not ready", "not healthy", "no available versions")  # Triton's words for it, which come as INTERNAL
NOT_KEPT = np.empty((0, 0, 3), np.uint8)  # in place of a photo whose pixels no output needs


class Refused(Exception):
    """What a caller is told in place of an answer."""

    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


@dataclass(eq=False)
class Opened:
    """A photo on its way."""

    name: str  # in messages
    pixels: np.ndarray
    net: NetworkImage
    seconds: dict[str, float]  # of each stage
    answer: PanopticResult | Refused | None = None


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_tensors(pb_utils)
        parameters = json.loads(args["model_config"])["parameters"]
        if METADATA_KEY not in parameters:
            raise pb_utils.TritonModelException(
                f"the configuration has no {METADATA_KEY}; make it with `upsnet deploy`"
            )
        self.manifest = Manifest.model_validate_json(parameters[METADATA_KEY]["string_value"])
        self.categories = self.manifest.categories_table
        self.max_bytes = int(parameters["max_photo_bytes"]["string_value"])
        self.version = int(args["model_version"])  # of `upsnet` too: a version of both models has one number
        self.counters = Counters(pb_utils, "upsnet_photo")
        Image.init()  # what else the first photo would wait for

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response of its own for each request, in order. Photos of one network size run together."""
        opened = [self.guard(self.open, request) for request in requests]
        self.ask([photo for photos in opened if isinstance(photos, list) for photo in photos])
        answers = [
            each if isinstance(each, Refused) else self.guard(self.respond, each, request)
            for each, request in zip(opened, requests, strict=True)
        ]
        return [refusal(each) if isinstance(each, Refused) else each for each in answers]

    def guard(self, step: Any, *arguments: Any) -> Any:
        """What the step returns, or what its caller is told instead: one request's fault is not its neighbours'."""
        try:
            return step(*arguments)
        except Refused as refused:
            return refused
        except InputError as error:
            return Refused(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # memory, for one; whatever it is, the other requests have their answers
            pb_utils.Logger.log_error(f"upsnet_photo: {type(error).__name__}: {error}")
            return Refused(FAILED, pb_utils.TritonError.INTERNAL)

    def open(self, request: Any) -> list[Opened]:
        if request.is_cancelled():
            raise Refused("the caller has gone", pb_utils.TritonError.CANCELLED)
        keep = OVERLAY in request.requested_output_names()
        encoded = pb_utils.get_input_tensor_by_name(request, PHOTO).as_numpy()[:, 0]
        opened = []
        for number, content in enumerate(encoded, 1):
            name = "photo" if len(encoded) == 1 else f"photo {number} of {len(encoded)}"
            if len(content) > self.max_bytes:
                raise InputError(f"{name}: {len(content)} bytes are over the limit of {self.max_bytes}")
            seconds: dict[str, float] = {}
            with self.counters.stage("decode", seconds):
                pixels = read_photo(content, name)
            with self.counters.stage("resize", seconds):
                net = to_network(pixels, self.manifest.resize)
            opened.append(Opened(name, pixels if keep else NOT_KEPT, net, seconds))
        return opened

    def ask(self, photos: list[Opened]) -> None:
        """Fills in the answers. Photos of other padded sizes apart: an answer does not depend on the neighbours."""
        for batch in batches(photos, self.manifest.max_batch):
            answers = self.guard(self.predict, batch)
            if not isinstance(answers, Refused):
                for photo, answer in zip(batch, answers, strict=True):
                    photo.answer = answer
            elif len(batch) == 1:
                batch[0].answer = answers
            else:  # the fault of one of them, perhaps
                for photo in batch:
                    self.ask([photo])

    def predict(self, batch: list[Opened]) -> list[PanopticResult]:
        """Asks the model `upsnet` of this server."""
        nets = [photo.net for photo in batch]
        images, sizes, scales = collate(nets)
        seconds = [photo.seconds for photo in batch]
        with self.counters.stage("network", *seconds):
            answer = pb_utils.InferenceRequest(
                model_name=MODEL,
                model_version=self.version,
                requested_output_names=OUTPUTS,
                inputs=[
                    pb_utils.Tensor(name, array)
                    for name, array in zip(INPUTS, (images, sizes, scales[:, None]), strict=True)
                ],
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            ).exec()
        if answer.has_error():
            raise network_refusal(answer.error())
        self.counters.batch(len(batch))
        panoptic, segments, count = (pb_utils.get_output_tensor_by_name(answer, name).as_numpy() for name in OUTPUTS)
        with self.counters.stage("restore", *seconds):
            return decode_batch(RawPrediction(panoptic, segments, count[:, 0]), nets)

    def respond(self, photos: list[Opened], request: Any) -> Any:
        predictions = []
        for photo in photos:
            if isinstance(photo.answer, Refused):
                if photo.answer.code == pb_utils.TritonError.UNAVAILABLE:
                    raise photo.answer  # it is of no photo
                raise Refused(f"{photo.name}: {photo.answer}", photo.answer.code)
            assert photo.answer is not None
            predictions.append(
                PanopticPrediction(photo.answer, self.categories, photo.pixels, photo.name, "", photo.seconds)
            )
        with self.counters.stage("encode"):
            tensors = photo_tensors(predictions, request.requested_output_names())
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])


def batches(photos: list[Opened], most: int) -> Iterator[list[Opened]]:
    """Photos of one padded size, at most `most` of them."""
    shapes: dict[tuple[int, ...], list[Opened]] = {}
    for photo in photos:
        shapes.setdefault(photo.net.image.shape, []).append(photo)
    for same in shapes.values():
        for start in range(0, len(same), most):
            yield same[start : start + most]


def network_refusal(error: Any) -> Refused:
    """What `upsnet` said, with its status; UNAVAILABLE, after which callers ask again, where it has gone or goes."""
    message, code = first_line(Exception(error.message())), error.code()
    if code == pb_utils.TritonError.UNAVAILABLE or any(words in message for words in STOPPING):
        return Refused(STOPS, pb_utils.TritonError.UNAVAILABLE)
    return Refused(message, code)


def refusal(refused: Refused) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(refused), refused.code))
