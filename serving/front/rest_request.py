"""What a REST inference request asks for, checked before anything of it reaches Triton's own parser."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

import numpy as np

from serving.front.refusal import Refused
from serving.limits import Limits
from serving.record import Outcome
from upsnet.contract import PHOTO, PHOTO_MODEL

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
JSON = "application/json"
MOST_JSON = 8 << 20  # bytes; reading it costs up to 20 times as much memory, and Triton's time, too
MOST_DEPTH = 16  # of brackets in brackets
MOST_TENSORS = 16
IDENTIFIER = re.compile(r"[!-~]{1,128}")  # of a request; another is answered, but not logged
INPUT_PARAMETERS, OUTPUT_PARAMETERS = {"binary_data_size"}, {"binary_data"}


class Asked(NamedTuple):
    """One request as it may go on."""

    request_id: str  # empty where the caller gives none
    photos: int
    pixels: int  # B x H x W of a tensor request
    large: bool
    seconds: float | None  # that the caller gives it
    header_length: int | None  # None: all of the body is JSON


def check(model: str, body: bytes, header_length: str | None, limits: Limits) -> Asked:
    """Refused, in one line, where the request is no KServe v2 inference or more than the service allows."""
    length = _length(header_length, len(body))
    request = _parse(body if length is None else body[:length])
    _tensors(request, "outputs", OUTPUT_PARAMETERS)
    inputs = _tensors(request, "inputs", INPUT_PARAMETERS)
    parameters = _parameters(request, "the request", None)
    binary = sum(_size(tensor["parameters"].get("binary_data_size", 0)) for tensor in inputs)
    if binary != len(body) - (len(body) if length is None else length):
        raise _invalid("binary_data_size of its inputs is not what follows the JSON")
    identifier, timeout = request.get("id", ""), parameters.get("timeout")
    return Asked(
        identifier if isinstance(identifier, str) and IDENTIFIER.fullmatch(identifier) else "",
        *_amount(model, inputs, limits),
        None if timeout is None else max(1, _size(timeout)) / 1e6,
        length,
    )


def _amount(model: str, inputs: list[dict[str, Any]], limits: Limits) -> tuple[int, int, bool]:
    """Photos, pixels, and whether it is a large one. Refused where they are more than is allowed."""
    named = {tensor["name"]: tensor for tensor in inputs}
    if model == PHOTO_MODEL:
        shape = named.get(PHOTO, {"shape": [0]})["shape"]
        photos, pixels, large = shape[0], 0, False
    else:
        shape = named.get("images", {"shape": [0]})["shape"]
        photos, pixels = shape[0], math.prod(shape[:3])
        large = 0 < limits.large_pixels < pixels
    if photos > limits.max_photos or pixels > limits.max_pixels:
        raise Refused(
            Outcome.TOO_LARGE,
            f"{photos} images of {pixels} pixels together are more than one request may have: "
            f"{limits.max_photos} images, {limits.max_pixels} pixels",
        )
    return photos, pixels, large


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
    letters = np.frombuffer(text, np.uint8)
    steps = np.isin(letters, list(b"[{")).astype(np.int32) - np.isin(letters, list(b"]}"))
    if np.cumsum(steps).max(initial=0) > MOST_DEPTH:
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
