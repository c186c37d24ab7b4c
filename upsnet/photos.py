"""Photos in, PNG files out."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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


def read_photo(path: PathLike) -> np.ndarray:
    """Any photo that Pillow reads -> uint8 H x W x 3 RGB, upright (EXIF applied), transparency on white.

    16-bit greys are scaled to 8 bits. Raises InputError for a missing, damaged or empty file and above MAX_PIXELS.
    """
    try:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"{path}: {size} pixels is over the limit of {MAX_PIXELS}; make it smaller")
            return np.array(_to_rgb(ImageOps.exif_transpose(image), path))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: over the limit of {MAX_PIXELS} pixels; make it smaller") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from error


def _open(path: PathLike) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower than Pillow's limit
        return Image.open(path)


def _to_rgb(image: Image.Image, path: PathLike) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise InputError(f"{path}: the image has no pixels")
    if image.mode == "F":
        raise InputError(f"{path}: a floating-point image has no defined white; convert it to 8 bits")
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
