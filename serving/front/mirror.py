"""Asks two versions for the photos of one request, and compares their answers: in a process of its own.

Decoding answers and comparing maps keeps Python's lock for tens of milliseconds a photo, and the front answers its
callers in less. So the front hands over a request's bytes as they came, and reads a line of JSON.

What goes in: a line of JSON (`Job`), then `size` bytes. What comes out: a line of JSON (`Compared`).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import suppress
from typing import BinaryIO, NamedTuple

import grpc
import numpy as np
from pydantic import BaseModel
from tritonclient.grpc import service_pb2 as pb

from serving.front.refusal import clean
from serving.front.requests import REGION
from serving.front.sampling import message_of
from serving.rollouts.tally import Answer, Compared
from upsnet.contract import LABELS16, METADATA_KEY, OUTPUTS, PHOTO_MODEL, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.errors import first_line
from upsnet.manifest import Manifest
from upsnet.parity.pixels import identical_counts
from upsnet.result import PanopticResult, Segment
from upsnet.runtimes.kserve import Outputs, read_outputs

INFER, CONFIG = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelConfig"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 500),
]
PHOTO_ANSWER = (LABELS16, PHOTO_SIZES, SEGMENTS_JSON)
NO_BOX = (0, 0, 0, 0)
Key = tuple[int, str, bool]  # of a class: its id in the data set, its name, whether it is a thing


class Job(BaseModel):
    """One request."""

    targets: tuple[str, str]  # of gRPC: the version in service, the candidate
    model: str
    size: int  # bytes of the message
    rest: bool = False
    header_length: int | None = None  # of REST's JSON, where tensors follow it
    deadline: float  # seconds for an answer
    swapped: bool = False  # the candidate is asked first


class Skipped(Exception):
    """Why there is nothing to compare."""


class Labelled(NamedTuple):
    """One photo as a version has it: ids H x W, and the class of each id."""

    ids: np.ndarray
    classes: dict[int, Key]


class Version:
    """A version's server."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._manifest: Manifest | None = None

    def describe(self, model: str, deadline: float) -> tuple[Answer, Manifest | None]:
        """Its manifest, which does not change; None where the answer is an error."""
        if self._manifest is not None:
            return Answer(seconds=0), self._manifest
        answer, told = self._call(CONFIG, pb.ModelConfigRequest(name=model).SerializeToString(), deadline)
        if not answer.error:
            try:
                parameters = pb.ModelConfigResponse.FromString(told).config.parameters
                self._manifest = Manifest.model_validate_json(parameters[METADATA_KEY].string_value)
            except Exception as error:  # of protobuf, of pydantic
                answer.error = f"it does not describe its model: {first_line(error)}"
        return answer, self._manifest

    def ask(self, message: bytes, deadline: float) -> tuple[Answer, Outputs]:
        answer, told = self._call(INFER, message, deadline)
        if not answer.error:
            try:
                return answer, read_outputs(pb.ModelInferResponse.FromString(told))
            except Exception as error:  # of protobuf, of `read_outputs`
                answer.error = first_line(error)
        return answer, {}

    def _call(self, method: str, message: bytes, deadline: float) -> tuple[Answer, bytes]:
        begun = time.perf_counter()
        try:
            told = self._channel.unary_unary(method)(message, timeout=deadline)
            return Answer(seconds=time.perf_counter() - begun), told
        except grpc.RpcError as error:
            late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            words = f"no answer within {deadline:g} s" if late else clean(error.details() or error.code().name)
            return Answer(seconds=time.perf_counter() - begun, error=words, late=late), b""


class Mirror:
    """Compares request by request."""

    def __init__(self) -> None:
        self._versions: dict[str, Version] = {}

    def compare(self, job: Job, body: bytes) -> Compared:
        versions = [self._versions.setdefault(target, Version(target)) for target in job.targets]
        (told, serving), (said, candidate) = (each.describe(job.model, job.deadline) for each in versions)
        if serving is None or candidate is None:
            return Compared(serving=told, candidate=said)
        manifests, different = (serving, candidate), differences(serving, candidate)
        try:
            message = _message(job, body)
            if job.model != PHOTO_MODEL and serving.resize != candidate.resize:
                raise Skipped(
                    "tensors are of the network size of the version in service, and the candidate has another"
                )
        except Skipped as skipped:
            return Compared(skipped=str(skipped), different=different)
        order = (1, 0) if job.swapped else (0, 1)
        asked = {index: versions[index].ask(message, job.deadline) for index in order}
        answers, photos = [], []
        for index in (0, 1):
            answer, outputs = asked[index]
            try:
                photos.append(_labelled(job.model, outputs, manifests[index]) if not answer.error else [])
            except Exception as error:  # whatever a broken version answers
                answer.error = f"its answer does not fit its model: {first_line(error)}"
                photos.append([])
            answers.append(answer)
        found = Compared(serving=answers[0], candidate=answers[1], different=different)
        if not any(answer.error for answer in answers):
            try:
                found.photos, found.classes = agreement(*photos)
            except ValueError as error:  # of other sizes
                answers[1].error = first_line(error)
        return found


def differences(serving: Manifest, candidate: Manifest) -> list[str]:
    """How a candidate's model is another one than that in service, in words."""
    told = []
    keys = [[(each.id, each.name, each.isthing) for each in manifest.categories] for manifest in (serving, candidate)]
    for mine, others, where in ((*keys, "missing in the candidate"), (*keys[::-1], "new in the candidate")):
        gone = [
            f"{name} ({id}{', a thing' if thing else ''})"
            for id, name, thing in mine
            if (id, name, thing) not in others
        ]
        if gone:
            told.append(f"classes {where}: {', '.join(gone[:5])}{f' and {len(gone) - 5} more' * (len(gone) > 5)}")
    if serving.resize != candidate.resize:
        rules = [f"{each.resize.short_side} to {each.resize.max_side}" for each in (serving, candidate)]
        told.append(f"network size: {rules[0]}, the candidate {rules[1]}")
    return told


def agreement(
    serving: list[Labelled], candidate: list[Labelled]
) -> tuple[list[tuple[int, int]], list[tuple[str, int, int]]]:
    """Of each photo its pixels and the identical ones; the same of each class of the version in service.

    ValueError where the answers are not of the same photos."""
    sizes = [[photo.ids.shape for photo in photos] for photos in (serving, candidate)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"its answer is of photos of {sizes[1]}, that of the version in service of {sizes[0]}")
    table: dict[Key, int] = {}  # of both: a class is the same where its id, its name and its kind are
    photos, counts = [], np.zeros((2, 0), np.int64)
    for pair in zip(serving, candidate, strict=True):
        results = [
            PanopticResult(
                photo.ids,
                [Segment(id, table.setdefault(key, len(table)), 0, 0, NO_BOX) for id, key in photo.classes.items()],
            )
            for photo in pair
        ]
        found = np.stack(identical_counts(results[0], results[1], len(table)))
        photos.append((int(found[0].sum()), int(found[1].sum())))
        known = np.zeros_like(found)  # void last; classes that came with this photo before it
        known[:, : max(0, counts.shape[1] - 1)] = counts[:, :-1]
        known[:, -1:] = counts[:, -1:] if counts.size else 0
        counts = known + found
    names = [*(name for _, name, _ in table), "void"]
    return photos, [(name, int(n), int(same)) for name, n, same in zip(names, *counts, strict=True) if n]


def _message(job: Job, body: bytes) -> bytes:
    """The same photos or tensors, asked for what is compared. Skipped where they are not in the message."""
    request, data = message_of(job.model, body, job.rest, job.header_length)
    message = pb.ModelInferRequest(model_name=job.model)
    for tensor, content in zip(request.inputs, data, strict=True):
        if REGION in tensor.parameters:
            raise Skipped("its photo is in shared memory")
        if content is None and not tensor.HasField("contents"):
            raise Skipped("its tensors are JSON")
        message.inputs.add(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tensor.shape,
            contents=tensor.contents if content is None else None,
        )
        if content is not None:
            message.raw_input_contents.append(bytes(content))
    for name in PHOTO_ANSWER if job.model == PHOTO_MODEL else OUTPUTS:
        message.outputs.add(name=name)
    return message.SerializeToString()


def _labelled(model: str, outputs: Outputs, manifest: Manifest) -> list[Labelled]:
    """An answer, photo by photo, or image by image of tensors. Raises nearly anything where it is none."""
    if model == PHOTO_MODEL:
        labels, sizes, told = (outputs[name] for name in PHOTO_ANSWER)
        return [
            Labelled(
                ids[:height, :width],
                {each["id"]: (each["category_id"], each["name"], each["isthing"]) for each in json.loads(segments)},
            )
            for ids, (height, width), segments in zip(labels, sizes, told, strict=True)
        ]
    categories = manifest.categories_table
    keys = [(each.id, each.name, each.isthing) for each in categories]
    panoptic, rows, counts = (outputs[name] for name in OUTPUTS)
    return [
        Labelled(ids, {row + 1: keys[int(segments[row, 0])] for row in range(int(np.ravel(count)[0]))})
        for ids, segments, count in zip(panoptic, rows, counts, strict=True)
    ]


def main(source: BinaryIO, out: BinaryIO) -> None:
    """Until the source ends."""
    mirror = Mirror()
    while line := source.readline():
        job = Job.model_validate_json(line)
        body = source.read(job.size)
        try:
            found = mirror.compare(job, body)
        except Exception as error:
            found = Compared(skipped=f"the comparison failed: {first_line(error)}")
        del body
        out.write(found.model_dump_json().encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's: it closes the pipe
    with suppress(BrokenPipeError):
        main(sys.stdin.buffer, sys.stdout.buffer)
