"""A model's graph without its weights, which ONNX Runtime then reads out of the same file one after the other.

An ONNX file is one protobuf message. Parsed whole, it holds every weight twice while it is loaded: 2.3 GB for a file of
0.9 GB. ONNX knows weights that lie in another file, at an offset; here that file is the model's own. onnx.proto has the
message's fields, of which this module needs a handful; a field is a number, a kind, and its content.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple  # Any: what ONNX Runtime's session takes by name

import onnxruntime as ort

from upsnet.errors import InputError
from upsnet.files import check_utf8

LEAST = 2**16  # bytes of a weight that is left in the file
GRAPH = 7  # of ModelProto
INITIALIZER = 5  # of GraphProto
RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 9, 13, 14  # of TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds


class Field(NamedTuple):
    """Of a message: where it begins, where its content does, and where both end."""

    number: int
    start: int
    content: int
    end: int


def start_session(model: Path, options: ort.SessionOptions, **named: Any) -> ort.InferenceSession:
    """ONNX Runtime's session of a file, which, where it has large weights, gives them out one by one.

    named: what `onnxruntime.InferenceSession` takes by name. Raises ONNX Runtime's errors, and InputError when the file
    was replaced meanwhile.
    """
    file = model.resolve()  # ONNX Runtime reads no weights through a link
    before = _stamp(file)
    if (light := without_weights(file)) is None:
        return ort.InferenceSession(str(model), options, **named)
    check_utf8(file, "ONNX Runtime")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    session = ort.InferenceSession(light, options, **named)
    if _stamp(file) != before:
        raise InputError(f"{model}: it was replaced while it was read; load it again")
    return session


def _stamp(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def without_weights(model: Path) -> bytes | None:
    """The model as bytes in which large weights are external data of the file `model.name`.

    None where it has none that could be, and where the file is no ONNX model, which ONNX Runtime has words for.
    """
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            light = b"".join(
                _message(GRAPH, b"".join(_light_graph(data, field, model.name)))
                if field.number == GRAPH
                else data[field.start : field.end]
                for field in _fields(data, 0, len(data))
            )
            return light if len(data) - len(light) >= LEAST else None
    except (ValueError, IndexError):
        return None


def _light_graph(data: mmap.mmap, graph: Field, name: str) -> Iterator[bytes]:
    for field in _fields(data, graph.content, graph.end):
        if field.number == INITIALIZER and field.end - field.content >= LEAST:
            yield _message(INITIALIZER, b"".join(_light_tensor(data, field, name)))
        else:
            yield data[field.start : field.end]


def _light_tensor(data: mmap.mmap, tensor: Field, name: str) -> Iterator[bytes]:
    for field in _fields(data, tensor.content, tensor.end):
        if field.number == RAW_DATA and field.end - field.content >= LEAST:
            place = {"location": name, "offset": field.content, "length": field.end - field.content}
            for key, value in place.items():
                yield _message(EXTERNAL_DATA, _message(1, key.encode()) + _message(2, str(value).encode()))
            yield _varint(DATA_LOCATION << 3 | VARINT) + _varint(1)  # EXTERNAL
        else:
            yield data[field.start : field.end]


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """ValueError, or IndexError, where these bytes are no message."""
    while start < end:
        tag, content = _read_varint(data, start)
        if (kind := tag & 7) == BYTES:
            length, content = _read_varint(data, content)
            stop = content + length
        elif kind == VARINT:
            stop = _read_varint(data, content)[1]
        elif kind in (FIXED64, FIXED32):
            stop = content + (8 if kind == FIXED64 else 4)
        else:
            raise ValueError(f"no kind of a field: {kind}")
        if stop > end:
            raise ValueError("a field is longer than its message")
        yield Field(tag >> 3, start, content, stop)
        start = stop


def _read_varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no number of 64 bits")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content
