"""What an inference request asks for, known before it waits: its photos, its pixels, its lane, and why it is refused.

The message goes on to Triton as it came; this only looks at it. What is left to the model: the values of its tensors.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from PIL import ExifTags, Image
from tritonclient.grpc import service_pb2 as pb

from serving.front.refusal import Refused
from serving.limits import Limits
from serving.record import Outcome
from upsnet.contract import INPUTS, PHOTO, PHOTO_MODEL, PHOTO_OUTPUTS
from upsnet.errors import InputError
from upsnet.photo_tensors import check_room, label_bytes
from upsnet.photos import SWAPPED

ITEM_BYTES = {"FP16": 2, "BF16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in ("UINT", "INT", "FP") for bits in (32, 64)
}
ITEM_BYTES |= {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2}
RAW_FIELD = 7  # raw_input_contents of ModelInferRequest
MOST_HEAD = 1 << 20  # bytes of a request without them: a parsed message takes many times its bytes
FIXED = {1: 8, 5: 4}  # bytes of a field, by its wire type
MOST_FIELDS, MOST_DIMENSIONS, MOST_NAME = 128, 8, 64
HEADER_BYTES = 1 << 16  # of a photo: its size stands there, or counts as unknown
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF")  # whose size Pillow reads without the whole file
REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Region(NamedTuple):
    """A part of shared memory that a request names."""

    name: str
    offset: int
    size: int


class Asked(NamedTuple):
    """One inference request."""

    request_id: str  # empty where the caller gives none that can be logged
    photos: int
    pixels: int
    large: bool
    regions: tuple[Region, ...]  # its inputs and outputs there


def parse(kind: type[AnyMessage], body: bytes) -> AnyMessage:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise Refused(Outcome.INVALID, f"the message is no {kind.__name__} of KServe's protocol") from None


def read(body: bytes) -> tuple[Any, list[memoryview | None]]:
    """A ModelInferRequest without its raw_input_contents, and each input's bytes: None where they are elsewhere."""
    head, raws = _split(body)
    request = parse(pb.ModelInferRequest, head)
    return request, _data(request, raws)


def request_id(request: Any) -> str:
    """The caller's, where a header and a line of a log can carry it; else nothing."""
    return request.id if re.fullmatch(r"[!-~]{1,128}", request.id) else ""


def assess(request: Any, data: list[memoryview | None], limits: Limits) -> Asked:
    """Of what `read` gives. Refused, in one line that names the limit, where the request is wrong or too much."""
    tensors = [each.name for each in (*request.inputs, *request.outputs)]
    if max(map(len, (request.model_name, request.model_version, *tensors))) > MOST_NAME:  # an error would repeat it
        raise Refused(Outcome.INVALID, f"no name of a model or of a tensor has more than {MOST_NAME} characters")
    regions = tuple(_region(each) for each in (*request.inputs, *request.outputs) if REGION in each.parameters)
    photos, pixels, large = 0, 0, False
    for tensor, raw in zip(request.inputs, data, strict=True):
        shape = _shape(tensor)
        length = _region(tensor).size if REGION in tensor.parameters else None if raw is None else len(raw)
        if length is not None and tensor.datatype in ITEM_BYTES:
            _check_bytes(tensor, length)
        if request.model_name == PHOTO_MODEL and tensor.name == PHOTO:
            photos, pixels, large = _photos(tensor, raw, _label_bytes(request), limits)
        elif tensor.name == INPUTS[0]:
            photos, pixels = shape[0] if shape else 0, math.prod(shape[:-1])
            large = 0 < limits.large_pixels < pixels
            if pixels > limits.max_pixels:
                text = " x ".join(map(str, shape[:-1]))
                raise Refused(Outcome.TOO_LARGE, f"{tensor.name} are {text}: more than {limits.max_pixels} pixels")
    return Asked(request_id(request), photos, pixels, large, regions)


def _split(body: bytes) -> tuple[bytes, list[memoryview]]:
    """The message without its raw_input_contents, and those, uncopied.

    A hostile message of tiny fields would take a hundred times its bytes as objects: so it is refused before it is any.
    """
    view, position, fields = memoryview(body), 0, 0
    head, raws = bytearray(), []
    try:
        while position < len(view):
            begun = position
            tag, position = _varint(view, position)
            number, start = (0, position) if tag & 7 in FIXED else _varint(view, position)
            position = start + {0: 0, 2: number, **FIXED}[tag & 7]
            if position > len(view):
                raise IndexError
            fields += 1
            if tag == RAW_FIELD << 3 | 2:
                raws.append(view[start:position])
            elif len(head) + position - begun > MOST_HEAD:
                raise Refused(Outcome.TOO_LARGE, f"more than {MOST_HEAD} bytes of a request beside raw_input_contents")
            else:
                head += view[begun:position]
            if fields > MOST_FIELDS:
                raise Refused(Outcome.TOO_LARGE, f"more than {MOST_FIELDS} tensors and parameters in a request")
    except LookupError:
        raise Refused(Outcome.INVALID, "the message is no ModelInferRequest of KServe's protocol") from None
    return bytes(head), raws


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A protobuf number and the position after it. IndexError where it has no end."""
    number = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise IndexError


def _data(request: Any, raws: list[memoryview]) -> list[memoryview | None]:
    """Each input's bytes; None where they are in shared memory or in the tensor's own `contents`."""
    if not raws:
        return [None] * len(request.inputs)
    wanted = [tensor for tensor in request.inputs if REGION not in tensor.parameters]
    if len(wanted) != len(raws):
        raise Refused(Outcome.INVALID, f"{len(wanted)} inputs, and {len(raws)} raw_input_contents")
    left = iter(raws)
    return [None if REGION in tensor.parameters else next(left) for tensor in request.inputs]


def _shape(tensor: Any) -> list[int]:
    shape = list(tensor.shape)
    if len(shape) > MOST_DIMENSIONS or any(not 0 <= size < 1 << 31 for size in shape) or math.prod(shape) >= 1 << 31:
        raise Refused(Outcome.INVALID, f"input {_name(tensor)} has an impossible shape: {shape[:MOST_DIMENSIONS]}")
    return shape


def _name(tensor: Any) -> str:
    return ascii(tensor.name[:MOST_NAME])


def _check_bytes(tensor: Any, length: int) -> None:
    wanted = math.prod(tensor.shape) * ITEM_BYTES[tensor.datatype]
    if wanted != length:
        what = f"{tensor.datatype} {list(tensor.shape)}"
        raise Refused(Outcome.INVALID, f"input {_name(tensor)} is {what}: {wanted} bytes, and {length} came")


def _region(tensor: Any) -> Region:
    values = tensor.parameters
    offset = values[OFFSET].int64_param if OFFSET in values else 0
    size = values[SIZE].int64_param if SIZE in values else 0
    return Region(values[REGION].string_param, offset, size)


def _label_bytes(request: Any) -> int:
    """Of a pixel, in the outputs that are asked for: all of them where none is named."""
    return label_bytes([each.name for each in request.outputs] or PHOTO_OUTPUTS)


def _photos(tensor: Any, raw: memoryview | None, pixel_bytes: int, limits: Limits) -> tuple[int, int, bool]:
    """How many photos, their pixels as far as they are known, and whether they are large."""
    count = math.prod(tensor.shape)
    if count > limits.max_photos:
        raise Refused(Outcome.TOO_LARGE, f"{count} photos: more than {limits.max_photos} in one request")
    if REGION in tensor.parameters:
        return (
            count,
            0,
            _region(tensor).size > limits.large_photo_pixels // 4,
        )  # bytes of a photo that is hard to compress
    photos = list(elements(raw)) if raw is not None else [memoryview(each) for each in tensor.contents.bytes_contents]
    if len(photos) != count:
        raise Refused(
            Outcome.INVALID, f"input {_name(tensor)} has {count} elements by its shape, and {len(photos)} came"
        )
    for photo in photos:
        _check_photo(len(photo), limits.max_photo_bytes)
    sizes = [_size(photo) for photo in photos]
    known = [size for size in sizes if size is not None]
    pixels = sum(height * width for height, width in known)
    sides = [max(lengths, default=0) for lengths in zip(*known, strict=True)]
    height, width = sides or (0, 0)
    try:
        maps = check_room(count, height, width, pixel_bytes)
    except InputError as error:
        raise Refused(Outcome.TOO_LARGE, str(error)) from None
    return count, pixels, None in sizes or max(pixels, maps) > limits.large_photo_pixels


def _check_photo(size: int, most: int) -> None:
    if size > most:
        raise Refused(Outcome.TOO_LARGE, f"a photo of {size} bytes: more than {most} are not allowed")


def elements(raw: memoryview) -> Iterator[memoryview]:
    """A BYTES tensor on the wire: before each element stands its length."""
    position, count = 0, 0
    while position < len(raw):
        if count > MOST_FIELDS or position + 4 > len(raw):
            raise Refused(Outcome.INVALID, "a BYTES tensor is a length of 4 bytes before each element's bytes")
        (length,) = struct.unpack_from("<I", raw, position)
        yield raw[position + 4 : position + 4 + length]
        position, count = position + 4 + length, count + 1
    if position > len(raw):
        raise Refused(Outcome.INVALID, "the last element of a BYTES tensor ends before its length")


def _size(photo: memoryview) -> tuple[int, int] | None:
    """Height and width by the header, nothing decoded; None where they cannot be told: the model is the judge."""
    header = bytes(photo[:HEADER_BYTES])
    if header[8:12] == b"WEBP":  # Pillow wants the whole file
        return _webp_size(header)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(header), formats=FORMATS) as image:
            # Of a PNG, getexif would decode.
            turned = image.format in ("JPEG", "MPO") and image.getexif().get(ExifTags.Base.Orientation) in SWAPPED
            return image.size if turned else (image.height, image.width)
    except Exception:  # a hostile header raises nearly anything, and decides nothing here but the lane
        return None


def _webp_size(header: bytes) -> tuple[int, int] | None:
    """Of the three kinds: lossy, lossless, extended (RFC 9649)."""
    if len(header) < 30:
        return None
    if header[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", header, 26)
        return height & 0x3FFF, width & 0x3FFF
    bits = int.from_bytes(header[21:25], "little")
    if header[12:16] == b"VP8L":
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(header[27:30], "little") + 1, int.from_bytes(header[24:27], "little") + 1
