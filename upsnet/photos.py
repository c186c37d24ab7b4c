"""Photos in, PNG files out."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from upsnet.errors import InputError, first_line
from upsnet.files import PathLike, atomic_path

MAX_PIXELS = 50_000_000

# All that Pillow raises for damaged or hostile files. The bomb pair is its own, larger limit on pixels.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


# What a photo may be given as: a path, an encoded image (its bytes, or a file opened to read them), a PIL image, or a
# uint8 H x W x 3 RGB array.
Photo = PathLike | bytes | bytearray | BinaryIO | Image.Image | np.ndarray


def read_photo(photo: Photo, name: str | None = None) -> np.ndarray:
    """Any photo -> a uint8 H x W x 3 RGB array of its own: upright (EXIF applied), transparency on white.

    photo: a path, the bytes of an encoded image, a file opened to read them or a PIL image, in any format and mode that
    Pillow has (16-bit greys are scaled to 8 bits), or a uint8 H x W x 3 array in RGB. name: what messages call it
    (default: its path).
    Raises InputError for what is missing, damaged, empty, over MAX_PIXELS, or none of these.

    >>> read_photo(np.zeros((480, 640, 3), np.uint8)).shape
    (480, 640, 3)
    """
    name = name or photo_path(photo) or "the photo"
    if isinstance(photo, np.ndarray):
        return _checked_array(photo, name)
    try:
        with _open(photo, name) as image:
            _check_size(image.width, image.height, name)
            return np.array(_to_rgb(ImageOps.exif_transpose(image), name))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: over the limit of {MAX_PIXELS} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a readable image: in no format that Pillow knows") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{name}: not a readable image: {first_line(error)}") from error


def photo_path(photo: Photo) -> str | None:
    """The path of a photo that has one: PIL's images know the file that they were opened from."""
    path = photo if isinstance(photo, str | os.PathLike) else getattr(photo, "filename", None)
    return os.fspath(path) if path else None


def _open(photo: Photo, name: str) -> AbstractContextManager[Image.Image]:
    if isinstance(photo, Image.Image):
        return nullcontext(photo)  # the caller's, and not closed here
    if isinstance(photo, str | os.PathLike):
        if os.path.isdir(photo):
            raise InputError(f"{name}: a folder, not a photo")
        if not os.path.isfile(photo):
            raise InputError(f"{name}: no such file")
    elif not isinstance(photo, bytes | bytearray) and not hasattr(photo, "read"):
        kinds = "a path, the bytes of an image, an open file, a PIL image or a uint8 H x W x 3 array"
        raise InputError(f"{name}: a photo is {kinds}, not {type(photo).__name__}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower than Pillow's limit
        stream: Any = io.BytesIO(photo) if isinstance(photo, bytes | bytearray) else photo
        return Image.open(stream)


def _checked_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{name}: an array must be uint8 H x W x 3 RGB, not {array.dtype} {list(array.shape)}")
    _check_size(array.shape[1], array.shape[0], name)
    return np.array(array)


def _check_size(width: int, height: int, name: str) -> None:
    if width == 0 or height == 0:
        raise InputError(f"{name}: the image has no pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width} x {height} pixels is over the limit of {MAX_PIXELS}; make it smaller")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{name}: a floating-point image has no defined white; convert it to 8 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which is how Pillow opens some 16-bit files
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def write_png(path: PathLike, array: np.ndarray) -> None:
    """Write uint8 H x W or H x W x 3 as a PNG, atomically."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InputError(f"{path}: a PNG needs uint8 H x W or H x W x 3, not {array.dtype} {list(array.shape)}")
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
