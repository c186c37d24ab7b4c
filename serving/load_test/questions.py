"""What a load test asks: photos, encoded or as the network's tensors, each as one gRPC message that is made once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from upsnet.contract import INPUTS, LABELS, MODEL, OUTPUTS, PHOTO, PHOTO_MODEL, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch, ResizeRule, collate, to_network
from upsnet.photos import read_photo
from upsnet.sources import find_sources

MODELS = (PHOTO_MODEL, MODEL)
ASKED = (LABELS, PHOTO_SIZES, SEGMENTS_JSON)  # of PHOTO_MODEL

Answer = dict[str, bytes]  # the outputs' raw contents, by name


class Question(NamedTuple):
    """One request; what it asks is in the message alone."""

    name: str
    message: bytes  # a ModelInferRequest


def photo_question(
    name: str, photos: Sequence[bytes], outputs: Sequence[str] = ASKED, version: int | None = None
) -> Question:
    """Encoded photos, as PHOTO_MODEL takes them. version: that is asked (default: the one in service)."""
    request = ModelInferRequest(model_name=PHOTO_MODEL, model_version="" if version is None else str(version))
    request.inputs.add(name=PHOTO, datatype="BYTES", shape=[len(photos), 1])
    for output in outputs:
        request.outputs.add(name=output)
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(photo)) + photo for photo in photos))
    return Question(name, request.SerializeToString())


def tensor_question(name: str, batch: NetworkBatch) -> Question:
    """A batch as MODEL takes it."""
    request = ModelInferRequest(model_name=MODEL)
    arrays = (batch.images, batch.sizes, batch.scales[:, None])  # Triton has no tensor of the batch's dimension alone
    for key, kind, array in zip(INPUTS, ("UINT8", "INT32", "FP32"), arrays, strict=True):
        request.inputs.add(name=key, datatype=kind, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for output in OUTPUTS:
        request.outputs.add(name=output)
    return Question(name, request.SerializeToString())


def read_questions(folder: Path, model: str, rule: ResizeRule, most: int) -> list[Question]:
    """A question for each photo of a folder, in the order of their names, `most` at most. InputError without any."""
    photos = [source.path for source in find_sources([folder], warn=False) if not source.is_video][:most]
    if not photos:
        raise InputError(f"{folder}: a folder without photos")
    if model == PHOTO_MODEL:
        return [photo_question(path.name, [path.read_bytes()]) for path in photos]
    return [tensor_question(path.name, collate([to_network(read_photo(path), rule)])) for path in photos]


def outputs_of(response: ModelInferResponse) -> Answer:
    names = (output.name for output in response.outputs)
    return dict(zip(names, response.raw_output_contents, strict=True))
