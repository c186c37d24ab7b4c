"""Files of masks: what each pixel holds, exactly as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageMode

from upsnet.datasets.coco_format import rgb2id
from upsnet.datasets.conversion.labels import Size
from upsnet.errors import InputError
from upsnet.photos import reading_photo

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LOSSY = ("JPEG", "WEBP", "MPO", "JPEG2000", "AVIF")
OPENED = ("PNG", "TIFF", "BMP", *LOSSY[:2])
TRANSPARENT = -1
BLACK = 0


class Pixels(NamedTuple):
    """Of one mask."""

    codes: np.ndarray  # int32 H x W: a grey value, an index of the palette, or R + 256 G + 65536 B; or TRANSPARENT
    kind: Literal["grey", "palette", "colors"]
    palette: list[int]  # the colour of each index, as R + 256 G + 65536 B


def read_pixels(path: Path, size: Size) -> Pixels | Size:
    """The size (height, width) alone, and nothing unpacked, where it is not `size` nor that of `size` turned.

    InputError for what is no image, for JPEG and its like, which change the values, and for values that are no codes:
    floats, blended edges, 16-bit colours.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with open(path, "rb") as stream, reading_photo(str(path)):
        header = stream.read(26)
        stream.seek(0)
        with Image.open(stream, formats=OPENED) as image:
            if image.format in LOSSY or image.info.get("compression") == "jpeg":
                raise InputError(f"{path}: a {image.format} changes the values at every edge; write the masks as PNG")
            if sorted(image.size) != sorted(size):
                return image.size[::-1]
            return _pixels(path, image, header[24] if image.format == "PNG" else None)


def _pixels(path: Path, image: Image.Image, depth: int | None) -> Pixels:
    """depth: bits a channel, where the file is a PNG: Pillow's mode hides them."""
    mode = image.mode
    if depth == 16 and mode in ("RGB", "RGBA", "LA"):
        raise InputError(f"{path}: colours of 16 bits a channel; write the masks with 8 bits")
    if mode == "P":
        palette = image.getpalette("RGB") or []
        colors = [red | green << 8 | blue << 16 for red, green, blue in zip(*(iter(palette),) * 3, strict=True)]
        return Pixels(np.asarray(image).astype(np.int32), "palette", colors)
    values = np.asarray(image)
    if mode in ("RGBA", "LA"):
        alpha, values = values[..., -1], values[..., :-1]
        if not np.isin(alpha, (0, 255)).all():
            raise InputError(f"{path}: holds half transparent pixels, which blend two values; write it without")
        codes = rgb2id(values) if mode == "RGBA" else values[..., 0].astype(np.int32)
        return Pixels(np.where(alpha == 0, TRANSPARENT, codes), "colors" if mode == "RGBA" else "grey", [])
    if mode == "RGB":
        return Pixels(rgb2id(values), "colors", [])
    if mode in ("1", "L", "I") or mode.startswith("I;"):
        if depth in (2, 4):  # Pillow stretches them to 0 .. 255
            values = values // (255 // ((1 << depth) - 1))
        if mode == "I" and values.size and not (values.min() >= 0 and values.max() < 1 << 24):
            raise InputError(f"{path}: holds values below 0 or over 24 bits")
        return Pixels(values.astype(np.int32), "grey", [])
    raise InputError(f"{path}: its pixels are of the kind {mode} ({ImageMode.getmode(mode).basemode}); write it as PNG")


def instance_ids(pixels: Pixels) -> np.ndarray:
    """int32 H x W: the number of each pixel's instance; 0 for black, and for what is transparent.

    Of colours the number is R + 256 G + 65536 B. A palette's index is the number, if that of black is 0; else the
    colour of the index is.
    """
    codes = np.maximum(pixels.codes, BLACK)
    if pixels.kind == "palette" and pixels.palette and pixels.palette[0] != BLACK:
        padded = np.zeros(256, np.int32)
        padded[: len(pixels.palette)] = pixels.palette
        return padded[codes]
    return codes
