"""Photos in, PNG files out."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image, IptcImagePlugin, UnidentifiedImageError

from upsnet.errors import InputError, first_line
from upsnet.files import PathLike, write_bytes
from upsnet.storage import Stored, is_url, shown
from upsnet.storage import read as read_stored

MAX_PIXELS = 50_000_000
MOST_BYTES = 512 << 20  # of one behind a URL: MAX_PIXELS of 8 bytes, and metadata

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

# How the pixels of a photo come upright, by the orientation that its EXIF or XMP tells (EXIF 2.32, tag 0x0112).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)  # those that swap width and height
XMP = {"XML:com.adobe.xmp": str, "xmp": bytes}  # where Pillow keeps it
TIFF_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)

# What a photo may be given as: a path or a URL (s3://bucket/name), an encoded image (its bytes, a file opened to read
# them, or a file in a shard), a PIL image, or a uint8 H x W x 3 RGB array.
Fetched = PathLike | bytes | bytearray | BinaryIO | Image.Image | np.ndarray
Photo = Fetched | Stored


def read_photo(photo: Photo, name: str | None = None) -> np.ndarray:
    """Any photo -> a uint8 H x W x 3 RGB array of its own: upright (EXIF applied), transparency on white.

    photo: a path or a URL, the bytes of an encoded image, a file opened to read them or a PIL image, in any format and
    mode that Pillow has (16-bit greys are scaled to 8 bits), or a uint8 H x W x 3 array in RGB. name: what messages
    call it (default: its path).
    Raises InputError for what is missing, damaged, empty, over MAX_PIXELS, or none of these.

    >>> read_photo(np.zeros((480, 640, 3), np.uint8)).shape
    (480, 640, 3)
    """
    return read_turned(photo, name).pixels


class Turned(NamedTuple):
    """A photo, and what its file says of it."""

    pixels: np.ndarray  # uint8 H x W x 3 RGB, upright
    orientation: int  # that it was stored in: 1 upright, else one of TURNS
    size: tuple[int, int]  # height, width of the photo, upright; `pixels` has fewer where it was drafted


Least = Callable[[int, int], tuple[int, int]]  # a photo's height, width -> the fewest that are wanted of each


def read_turned(photo: Photo, name: str | None = None, least: Least | None = None) -> Turned:
    """`read_photo`'s array, with what its file says. InputErrors as `read_photo`.

    least: a JPEG that has far more pixels is drafted: its decoder leaves the high frequencies of each 8 x 8 block out
    and gives a half, a quarter or an eighth of the pixels a side, at least `least` of them. Faults are found as before:
    every byte is read.
    """
    name = name or photo_path(photo) or "the photo"
    if isinstance(photo, np.ndarray):
        pixels = _checked_array(photo, name)
        return Turned(pixels, 1, pixels.shape[:2])
    with reading_photo(name), _open(photo, name) as image:
        _check_size(image.width, image.height, name)
        drafted = _draft(image, least) if least else None
        orientation = load_pixels(image)
        _check_size(image.im.size[0], image.im.size[1], name)  # an ICO may hold a larger image than it says
        turn = None if image.format == "TIFF" else TURNS.get(orientation)  # Pillow turns a TIFF when it loads it
        pixels = np.array(_to_rgb(image if turn is None else image.transpose(turn), name))
        size = drafted or pixels.shape[:2]
        return Turned(pixels, orientation, size[::-1] if drafted and orientation in SWAPPED else size)


def _draft(image: Image.Image, least: Least) -> tuple[int, int] | None:
    """Height and width of a JPEG that is going to be decoded smaller, as they are stored; None for all others."""
    height, width = image.height, image.width
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    rows, columns = least(height, width)
    image.draft(None, (columns, rows))
    return None if image.size == (width, height) else (height, width)


def encoded_photo(photo: Photo, name: str | None = None) -> bytes | None:
    """The bytes of a photo that is encoded; None for pixels, as an array and a PIL image are. Nothing is decoded.

    Takes what `read_photo` takes. Raises InputError for what is missing, or no photo by its type.
    """
    name = name or photo_path(photo) or "the photo"
    here = fetched(photo)
    if isinstance(here, np.ndarray | Image.Image):
        return None
    _check_openable(here, name)
    if isinstance(here, bytes | bytearray):
        return bytes(here)
    with reading_photo(name):
        if isinstance(here, str | os.PathLike):
            return Path(here).read_bytes()
        here.seek(0)  # as Pillow does
        return here.read()


@contextmanager
def reading_photo(name: str) -> Iterator[None]:
    """What Pillow raises inside is an InputError that names the photo; what it warns of is not said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, and sizes: MAX_PIXELS is lower than Pillow's limit
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: over the limit of {MAX_PIXELS} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a readable image: in no format that Pillow knows") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{name}: not a readable image: {first_line(error)}") from error


def load_pixels(image: Image.Image) -> int:
    """Decodes; returns the stored orientation. What else the metadata hold may be broken.

    PostScript, which is a program, is not run: from the first photo on Pillow finds no Ghostscript in this process.
    """
    EpsImagePlugin.gs_binary = False
    if isinstance(image, EpsImagePlugin.EpsImageFile | IptcImagePlugin.IptcImageFile) and image.tile:
        raise OSError("an EPS or IPTC file may hold PostScript, a program, which is not run; convert it to PNG or JPEG")
    orientation = orientation_of(image)
    if image.format == "TIFF":
        _forget_broken(image)  # its load reads all metadata
    image.load()
    return orientation


def orientation_of(image: Image.Image) -> int:
    """1 .. 8 as EXIF tells, or XMP where EXIF does not; 1, upright, where neither does readably."""
    bare = Image.new("1", (1, 1))  # without the EXIF
    bare.info = {key: image.info[key] for key, kind in XMP.items() if isinstance(image.info.get(key), kind)}
    for each in (image, bare):
        try:
            value = each.getexif().get(ExifTags.Base.Orientation)
        except DECODE_ERRORS:
            value = None
        if value is None and isinstance(content := each.info.get("exif"), bytes):
            value = _orientation_in(content)
        if value is not None:
            return int(value) if isinstance(value, int | float) and value in TURNS else 1
    return 1


def _orientation_in(exif: bytes) -> int | None:
    """Of the block's first directory alone, whatever its other entries point to: Pillow stops at the first bad one."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    try:
        if order:
            (start,) = struct.unpack_from(f"{order}I", block, 4)
            (count,) = struct.unpack_from(f"{order}H", block, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
                if (tag, kind) == (ExifTags.Base.Orientation, 3):  # an unsigned short
                    return int(value)
    except struct.error:  # the block ends before
        pass
    return None


def _forget_broken(image: Image.Image) -> None:
    """Drops the metadata that cannot be read of those that Pillow looks at when it loads a TIFF."""
    for key, kind in XMP.items():
        if not isinstance(image.info.get(key, kind()), kind):
            del image.info[key]
    exif = image.getexif()
    for tag in (ExifTags.Base.Orientation, *TIFF_IFDS):
        try:
            exif.get_ifd(tag) if tag in TIFF_IFDS else exif.get(tag)
        except DECODE_ERRORS:
            if tag in exif:
                del exif[tag]


def turn_words(orientation: int, size: object, other: object) -> str:
    """What explains that a photo of (width, height) `size` and its labels of size `other` differ: EXIF; else ''."""
    if orientation not in SWAPPED or not isinstance(size, tuple) or size[::-1] != other:
        return ""
    return (
        f"; the EXIF orientation {orientation} turns the photo by a quarter, and its labels were painted before that: "
        f"remove the tag (exiftool -Orientation=), or paint them on the turned photo"
    )


def photo_path(photo: Photo) -> str | None:
    """The path of a photo that has one: PIL's images know the file that they were opened from."""
    if isinstance(photo, Stored):
        return str(photo)
    path = photo if isinstance(photo, str | os.PathLike) else getattr(photo, "filename", None)
    return shown(os.fspath(path)) if path else None


def _open(photo: Photo, name: str) -> AbstractContextManager[Image.Image]:
    if isinstance(photo, Image.Image):
        return nullcontext(photo)  # the caller's, and not closed here
    here = fetched(photo)
    _check_openable(here, name)
    stream: Any = io.BytesIO(here) if isinstance(here, bytes | bytearray) else here
    return Image.open(stream)


def fetched(photo: Photo) -> Fetched:
    """The bytes of what lies behind a URL or in a shard, else the photo itself. InputError where they are not there."""
    if isinstance(photo, Stored):
        return photo.read()
    return read_stored(photo, most=MOST_BYTES) if isinstance(photo, str) and is_url(photo) else photo


def _check_openable(photo: Fetched, name: str) -> None:
    if isinstance(photo, str | os.PathLike):
        if os.path.isdir(photo):
            raise InputError(f"{name}: a folder, not a photo")
        if not os.path.isfile(photo):
            raise _no_file(photo, name)
    elif not isinstance(photo, bytes | bytearray) and not hasattr(photo, "read"):
        kinds = "a path, the bytes of an image, an open file, a PIL image or a uint8 H x W x 3 array"
        raise InputError(f"{name}: a photo is {kinds}, not {type(photo).__name__}")


def _no_file(path: PathLike, name: str) -> InputError:
    try:
        os.stat(path)
    except (FileNotFoundError, ValueError):  # the latter: a zero byte in the name
        return InputError(f"{name}: no such file")
    except OSError as error:
        unreadable = InputError(f"{name}: cannot be read: {error.strerror}")
        unreadable.__cause__ = error
        return unreadable
    return InputError(f"{name}: a device or a pipe, not a photo")


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
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def write_png(path: PathLike, array: np.ndarray) -> None:
    """Write uint8 H x W or H x W x 3 as a PNG, atomically."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InputError(f"{path}: a PNG needs uint8 H x W or H x W x 3, not {array.dtype} {list(array.shape)}")
    write_image(path, Image.fromarray(array), "PNG")


def write_image(path: PathLike, image: Image.Image, kind: str, **options: object) -> None:
    """Encode as Pillow's `kind` and write, atomically."""
    write_bytes(path, encode_image(image, kind, **options))


def encode_image(image: Image.Image, kind: str, **options: object) -> bytes:
    """In memory: Pillow itself takes a file that the disk had no more room for as whole."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
