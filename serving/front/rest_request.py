"""What a REST inference request asks for, checked before anything of it reaches Triton's own parser."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from serving.front.refusal import Refused
from serving.front.requests import Asked, assess
from serving.limits import Limits
from serving.record import Outcome

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
JSON = "application/json"
MOST_JSON = 1 << 20  # bytes; hostile JSON takes 20 times as much memory, and everybody waits while it is read
MOST_DEPTH = 16  # of brackets in brackets
STEPS = bytes({ord("["): 1, ord("{"): 1, ord("]"): 255, ord("}"): 255}.get(letter, 0) for letter in range(256))
MOST_TENSORS = 16
INPUT_PARAMETERS, OUTPUT_PARAMETERS = {"binary_data_size"}, {"binary_data"}


class RestRequest(NamedTuple):
    """One request as it may go on."""

    asked: Asked
    seconds: float | None  # that the caller gives it
    header_length: int | None  # None: all of the body is JSON


def check(model: str, body: bytes, header_length: str | None, limits: Limits) -> RestRequest:
    """Refused, in one line, where the request is no KServe v2 inference or more than the service allows."""
    length = _length(header_length, len(body))
    content, message, data = unfold(model, body, length)
    timeout = _parameters(content, "the request", None).get("timeout", 0)  # microseconds; 0 is none
    asked = assess(message, data, limits)
    return RestRequest(asked, _size(timeout) / 1e6 or None, length)


def unfold(
    model: str, body: bytes, length: int | None
) -> tuple[dict[str, Any], pb.ModelInferRequest, list[memoryview | None]]:
    """The JSON, the same request as gRPC would bring it without its data, and each input's binary tensor: None where it
    stands in the JSON. length: of the JSON; None: all of the body. Raises like `check`."""
    content = _parse(body if length is None else body[:length])
    outputs = _tensors(content, "outputs", OUTPUT_PARAMETERS)
    inputs = _tensors(content, "inputs", INPUT_PARAMETERS)
    data = _data(inputs, memoryview(body)[len(body) if length is None else length :])
    return content, _message(model, content, inputs, outputs), data


def _message(
    model: str, content: dict[str, Any], inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor
    try:
        tensors = [tensor(name=each["name"], datatype=each["datatype"], shape=each["shape"]) for each in inputs]
        wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=each["name"]) for each in outputs]
        return pb.ModelInferRequest(model_name=model, id=content.get("id", ""), inputs=tensors, outputs=wanted)
    except (KeyError, TypeError, ValueError):
        raise _invalid("a name, a datatype or its id is missing or no text") from None


def _data(inputs: list[dict[str, Any]], tail: memoryview) -> list[memoryview | None]:
    data: list[memoryview | None] = []
    position = 0
    for tensor in inputs:
        size = tensor["parameters"].get("binary_data_size")
        if size is None and tensor.get("datatype") == "BYTES":
            raise _invalid(f"BYTES are no JSON: send them after it, with binary_data_size and {HEADER_LENGTH}")
        if size is None and "data" not in tensor:
            raise _invalid("one of its inputs has neither data nor binary_data_size")
        data.append(None if size is None else tail[position : position + _size(size)])
        position += size or 0
    if position != len(tail):
        raise _invalid("binary_data_size of its inputs is not what follows the JSON")
    return data


def _length(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or int(text) > size:
        raise _invalid(f"{HEADER_LENGTH} is no number of bytes within the body")
    return int(text)


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > MOST_JSON:
        raise Refused(
            Outcome.TOO_LARGE,
            f"its JSON has more than {MOST_JSON} bytes; send tensors in binary after it ({HEADER_LENGTH})",
        )
    steps = np.frombuffer(text.translate(STEPS), np.int8)  # inwards and outwards
    if steps.cumsum(dtype=np.int32).max(initial=0) > MOST_DEPTH:
        raise _invalid(f"its brackets are more than {MOST_DEPTH} deep")
    try:
        request = json.loads(text.decode(), object_pairs_hook=_no_key_twice)
    except ValueError as error:
        raise _invalid(f"its JSON cannot be read ({error})") from None
    if not isinstance(request, dict):
        raise _invalid("it is no JSON object")
    return request


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys Triton would read the first and we the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _tensors(request: dict[str, Any], kind: str, allowed: set[str]) -> list[dict[str, Any]]:
    if kind == "inputs" and kind not in request:
        raise _invalid("it has no inputs")
    tensors = request.get(kind, [])
    if not isinstance(tensors, list) or len(tensors) > MOST_TENSORS:
        raise _invalid(f"its {kind} are no list of at most {MOST_TENSORS} tensors")
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise _invalid(f"one of its {kind} has no name")
        tensor["parameters"] = _parameters(tensor, f"one of its {kind}", allowed)
        if kind == "inputs":
            shape = tensor.get("shape")
            if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
                raise _invalid("one of its inputs has no shape")
            tensor["shape"] = [_size(side) for side in shape]
    return tensors


def _parameters(holder: dict[str, Any], what: str, allowed: set[str] | None) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _invalid(f"the parameters of {what} are no object")
    if any("shared_memory" in key for key in parameters):
        raise Refused(Outcome.FORBIDDEN, "shared memory is not for REST: send the tensor itself")
    if allowed is not None and not parameters.keys() <= allowed:
        raise _invalid(f"{what} has other parameters than {', '.join(allowed)}")
    return parameters


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise _invalid("a shape, a size or a timeout in it is no whole number from 0 on")
    return value


def _invalid(why: str) -> Refused:
    return Refused(Outcome.INVALID, f"the request is no KServe v2 inference: {why}")
