"""What is asked of a server, and what is made of its answers, without the way there.

A conversation is a generator of steps. It yields what is to be done next (an `Ask`, or a function that takes a while)
and is sent what came of it, so that a synchronous client and one of asyncio hold the same conversations.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import ValidationError

from upsnet.contract import METADATA_KEY, OUTPUTS
from upsnet.errors import InputError, ServerError, first_line, one_line
from upsnet.files import PathLike
from upsnet.geometry import NetworkBatch
from upsnet.manifest import Manifest
from upsnet.runtimes.address import WANTED, check_grpc, parse_address
from upsnet.runtimes.options import TLS_SCHEME
from upsnet.runtimes.predictor import RawPrediction
from upsnet.runtimes.tls import Tls

RETRIES = 4  # the most that gRPC does
MOST_SECONDS = 97_200_000  # that gRPC takes as a deadline, 27 000 hours; far more than that is over at once
KINDS = {"uint8": "UINT8", "uint16": "UINT16", "int32": "INT32", "float32": "FP32"}  # numpy's name -> the protocol's
BYTES = "BYTES"
VERSION = re.compile("[1-9][0-9]{0,8}")
SWITCHES = 3  # in a row that a request follows: roll-outs are far apart
# What a caller of the network itself must be able to rely on, and one who looks at results: in a manifest.
CLASSES = {"categories": "its class table"}
SIZES = {**CLASSES, "resize": "its network size"}
VERSION_HEADER = "upsnet-version"  # metadata: whose configuration it is; for which version a region is registered
LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor
EMPTY: Mapping[str, Any] = {}


class Server(NamedTuple):
    """Where a server is, and how it is asked."""

    address: str  # host:port
    tls: Tls | None = None
    timeout: float = 120.0  # seconds for a call, its retries included
    retries: int = RETRIES
    shared_memory: bool | None = None  # for tensors: always, never, or where it is worth it
    version: str = ""  # of its models, as the protocol has it: a number; empty: the one in service

    @classmethod
    def of(
        cls,
        url: str,
        tls: Tls | PathLike | bool | None,
        timeout: float,
        retries: int,
        shared_memory: bool | None = None,
        version: int | str | None = None,
    ) -> Server:
        """url: grpc://host:port, or grpcs:// for TLS. version: a number. InputError for what is none of it."""
        address = parse_address(url)
        if not (isinstance(timeout, int | float) and 0 < timeout <= MOST_SECONDS):
            raise InputError(f"timeout {timeout!r}: give a number of seconds, above 0 and at most {MOST_SECONDS}")
        if retries not in range(RETRIES + 1):
            raise InputError(f"retries {retries!r}: give 0 to {RETRIES}")
        if not isinstance(shared_memory, bool | None):
            raise InputError(f"shared_memory {shared_memory!r}: give True, False or None")
        number = "" if version is None else str(version)
        if version is not None and not VERSION.fullmatch(number):
            raise InputError(f"version {version!r}: give a number from 1 on")
        return cls(address, Tls.of(tls or url.startswith(TLS_SCHEME)), timeout, retries, shared_memory, number)

    def __str__(self) -> str:
        return f"the Triton server at {self.address}{f' (version {self.version})' if self.version else ''}"

    def of_model(self, name: str) -> dict[str, str]:
        """The fields of a question about a model."""
        return {"name": name, "version": self.version}


class Served(NamedTuple):
    """A model of a server."""

    server: Server
    model: str
    manifest: Manifest
    max_batch: int
    version: str = ""  # that this is said of; empty: the server does not tell
    given: Manifest | None = None  # the caller's own manifest, which counts


class Ask(NamedTuple):
    """One call."""

    method: str  # of GRPCInferenceService
    fields: Mapping[str, Any]  # of its request
    metadata: tuple[tuple[str, str], ...] = ()  # that goes along
    timeout: float | None = None  # None: the server's
    told: dict[str, Any] | None = None  # takes the initial metadata of the answer


class CallError(Exception):
    """How a call failed: gRPC's status, and the server's words."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        # Triton puts a request id that nobody gave in front of its own messages.
        self.status, self.text = status, " ".join(text.removeprefix("[request id: <id_unknown>] ").split())


class OtherVersion(ServerError):
    """An answer is of another version than the one that the server described: it has begun to serve another."""

    def __init__(self, served: Served, version: str) -> None:
        super().__init__(f"{served.server} serves version {version} of {served.model} now, and not {served.version}")


Answer = TypeVar("Answer")
Step = Ask | Callable[[], Any]
Steps = Generator[Step, Any, Answer]
Inputs = Mapping[str, np.ndarray | Sequence[bytes]]
Outputs = dict[str, np.ndarray | list[bytes]]
Infer = Callable[[Served, Inputs, Sequence[str]], Steps[Outputs]]


async def hold(steps: Steps[Answer], take: Callable[[Step], Awaitable[Any]]) -> Answer:
    """Holds a conversation. take: does one step, or raises CallError or InputError, which the conversation hears."""
    answer, error = None, None
    try:
        while True:
            step = steps.throw(error) if error else steps.send(answer)
            answer, error = None, None
            try:
                answer = await take(step)
            except (CallError, InputError) as failure:
                error = failure
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def hold_here(steps: Steps[Answer], take: Callable[[Step], Any]) -> Answer:
    """The same in this thread, with a `take` that waits for nothing but its step."""

    async def taken(step: Step) -> Any:
        return take(step)

    try:
        hold(steps, taken).send(None)  # it awaits nothing, so that this runs it to its end
    except StopIteration as end:
        return end.value
    raise AssertionError("a step of a conversation was not taken")


def call(server: Server, ask: Ask) -> Steps[Any]:
    """The answer, a message of the protocol. ServerError in one line; InputError where the request was wrong."""
    try:
        return (yield ask)
    except CallError as error:
        raise (yield from explain(server, error)) from error


def explain(server: Server, error: CallError) -> Steps[InputError]:
    """The error in one line."""
    if error.status == "UNAVAILABLE":
        try:
            yield partial(check_grpc, server.address, tls=server.tls)
        except InputError as gone:  # whose word is better than gRPC's, also on a certificate's file
            return ServerError(str(gone), error.status)
    match error.status:
        case "INVALID_ARGUMENT":
            return InputError(f"{server} refused the request: {error.text}")
        case "UNIMPLEMENTED":
            message = f"a gRPC server that is no Triton answers at {server.address}; {WANTED}"
        case "DEADLINE_EXCEEDED":
            message = f"{server} did not answer within {server.timeout:g} s"
        case _ if "is not healthy" in error.text:
            message = f"the model in {server} has died; restart the server (`make serve`)"
        case _:
            message = f"{server} refused the request: {error.text}"
    return ServerError(message, error.status)


def describe(server: Server, model: str, manifest: Manifest | None = None) -> Steps[Served]:
    """What is served. `manifest`: of a model that does not tell."""
    told: dict[str, Any] = {}
    try:
        config = (yield Ask("ModelConfig", server.of_model(model), told=told)).config
    except CallError as error:
        if error.status == "NOT_FOUND":
            message = f"{server} runs without the model {model} ({error.text}); see its log"
            raise ServerError(message, error.status) from error
        raise (yield from explain(server, error)) from error
    found = manifest or _manifest(server, model, config)
    return Served(server, model, found, max(1, config.max_batch_size), _version(config, told), manifest)


def describe_again(served: Served, other: OtherVersion, same: Mapping[str, str]) -> Steps[Served]:
    """What is served now. ServerError where it differs in what must be the `same`: attributes of the manifest, and what
    they are in words."""
    now = yield from describe(served.server, served.model, served.given)
    for name, what in same.items():
        if getattr(now.manifest, name) != getattr(served.manifest, name):
            raise ServerError(f"{other}: {what} is another; open it again, or name a version")
    return now


def _version(config: Any, told: Mapping[str, Any]) -> str:
    """Whose configuration it is: `upsnet serve` says so, and that of a repository with roll-outs is of one version."""
    named = list(config.version_policy.specific.versions)
    return str(told.get(VERSION_HEADER) or (named[0] if len(named) == 1 else ""))


def _manifest(server: Server, model: str, config: Any) -> Manifest:
    """Categories and sizes, as `upsnet deploy` and `upsnet serve` write them into the model's configuration."""
    if METADATA_KEY not in config.parameters:
        raise ServerError(
            f"{server} does not tell the categories of {model} (its configuration has no parameter {METADATA_KEY}); "
            "serve it with `upsnet serve` or `upsnet deploy`, or give its manifest"
        )
    try:
        return Manifest.model_validate_json(config.parameters[METADATA_KEY].string_value)
    except ValidationError as error:
        raise ServerError(
            f"{server}: the manifest of {model} is damaged ({one_line(error)}); deploy the model again"
        ) from None


def infer(served: Served, inputs: Inputs, outputs: Sequence[str], timeout: float | None = None) -> Steps[Outputs]:
    """The outputs that are asked for, by name. Arrays have the batch first; encoded content is B x 1. OtherVersion."""
    ask = Ask("ModelInfer", infer_request(served.server, served.model, inputs, outputs), timeout=timeout)
    answer = yield from call(served.server, ask)
    check_version(served, answer)
    return read_outputs(answer)


def check_version(served: Served, answer: Any) -> None:
    """OtherVersion where the answer is of another one than was described."""
    if served.version and answer.model_version and answer.model_version != served.version:
        raise OtherVersion(served, answer.model_version)


def infer_request(
    server: Server,
    model: str,
    inputs: Inputs,
    outputs: Sequence[str],
    elsewhere: Mapping[str, Mapping[str, Any]] = EMPTY,
) -> dict[str, Any]:
    """The fields of a ModelInferRequest. elsewhere: the parameters of tensors that are not in the message."""
    tensors: list[dict[str, Any]] = []
    contents = []
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            parameters = elsewhere.get(name, EMPTY)
            tensors.append(
                {"name": name, "datatype": KINDS[value.dtype.name], "shape": value.shape, "parameters": parameters}
            )
            if not parameters:
                contents.append(value.tobytes())
        else:
            tensors.append({"name": name, "datatype": BYTES, "shape": [len(value), 1]})
            contents.append(b"".join(LENGTH.pack(len(each)) + each for each in value))
    wanted = [{"name": name, "parameters": elsewhere.get(name, EMPTY)} for name in outputs]
    return {
        "model_name": model,
        "model_version": server.version,
        "inputs": tensors,
        "outputs": wanted,
        "raw_input_contents": contents,
    }


def read_outputs(answer: Any, elsewhere: Mapping[str, Mapping[str, Any]] = EMPTY) -> Outputs:
    """Of a ModelInferResponse, without those that are not in the message. ServerError where it contradicts itself."""
    found: dict[str, np.ndarray | list[bytes]] = {}
    try:
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
            dtype = next((dtype for dtype, kind in KINDS.items() if kind == output.datatype), None)
            if output.name in elsewhere and not content:
                continue
            if dtype:
                found[output.name] = np.frombuffer(content, dtype).reshape(output.shape)
            elif output.datatype == BYTES:
                found[output.name] = _elements(content)
    except (ValueError, struct.error) as error:
        raise ServerError(f"the server's answer cannot be read: {first_line(error)}") from error
    return found


def _elements(content: bytes) -> list[bytes]:
    elements, place = [], 0
    while place < len(content):
        start = place + LENGTH.size
        place = start + LENGTH.unpack_from(content, place)[0]
        elements.append(content[start:place])
    return elements


def predict_tensors(served: Served, batch: NetworkBatch, infer: Infer = infer) -> Steps[RawPrediction]:
    """What the graph says. A batch that is larger than the server's becomes several requests. infer: how they go."""
    check_inputs(batch)
    parts = []
    for start in range(0, len(batch.images), served.max_batch):
        part = NetworkBatch(*(array[start : start + served.max_batch] for array in batch))
        # scales are B x 1 on the wire: Triton has no tensor without a dimension after the batch.
        inputs = part._replace(scales=part.scales[:, None])._asdict()
        found = yield from infer(served, inputs, OUTPUTS)
        parts.append(_raw(served, found, part.images.shape[:3]))
    return parts[0] if len(parts) == 1 else RawPrediction(*map(np.concatenate, zip(*parts, strict=True)))


def _raw(served: Served, found: Mapping[str, Any], shape: tuple[int, ...]) -> RawPrediction:
    batch = shape[0]
    expect(served, found, "panoptic", np.uint8, shape)
    expect(served, found, "segment_count", np.int32, (batch, 1))
    expect(served, found, "segments", np.float32, (batch, served.manifest.max_segments, 7))
    return RawPrediction(found["panoptic"], found["segments"], found["segment_count"][:, 0])


def expect(
    served: Served, found: Mapping[str, Any], name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    """ServerError where an output is not what the manifest says."""
    array = found.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "missing"
        raise ServerError(
            f"the answer of {served.server} does not fit the manifest of {served.manifest.name}: {name} should be "
            f"{np.dtype(dtype)} {shape}, and is {got}"
        )


def check_inputs(request: NetworkBatch) -> None:
    """InputError naming the first tensor whose type or shape is not the graph's."""
    images, sizes, scales = request
    batch = len(images) if images.ndim else 0
    photos = images.ndim == 4 and images.shape[3] == 3 and images.size > 0
    for name, array, dtype, expected, fits in (
        ("images", images, np.uint8, "B x H x W x 3, all non-zero", photos),
        ("sizes", sizes, np.int32, f"{batch} x 2", sizes.shape == (batch, 2)),
        ("scales", scales, np.float32, f"{batch}", scales.shape == (batch,)),
    ):
        if array.dtype != dtype or not fits:
            got = " x ".join(map(str, array.shape))
            raise InputError(f"{name} should be {np.dtype(dtype)} {expected}, and is {array.dtype} {got}")
