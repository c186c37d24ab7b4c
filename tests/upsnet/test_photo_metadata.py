"""A photo is good when its pixels are: of its metadata the orientation is read, and nothing else has to be whole."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.upsnet.test_photos import STORED, UPRIGHT
from upsnet.datasets.doctor.image import size_and_orientation
from upsnet.errors import InputError
from upsnet.photos import TURNS, read_photo, read_turned, turn_words

ORIENTATION, XMP_TAG = 0x0112, 0x02BC
EXIF_IFD, GPS_IFD, INTEROP_IFD, MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
TAGS = (
    ORIENTATION,
    EXIF_IFD,
    GPS_IFD,
    INTEROP_IFD,
    MAKER_NOTE,
    XMP_TAG,
    0x010F,
    0x011A,
    0x011B,
    0x0128,
    0x0201,
    0x9003,
)
BLOCKS = 2000

Entry = tuple[int, int, int, bytes]  # tag, type, count, value or offset


def directory(entries: list[Entry], start: int = 8, count: int | None = None) -> bytes:
    rows = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return struct.pack("<H", len(entries) if count is None else count) + rows + struct.pack("<I", 0)


def block(entries: list[Entry]) -> bytes:
    """A little-endian TIFF of one directory, as EXIF is."""
    return b"II*\0" + struct.pack("<I", 8) + directory(entries)


def turned_by(orientation: int) -> Entry:
    return ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)


def random_entry(draws: random.Random) -> Entry:
    tag = draws.choice(TAGS)
    if tag == ORIENTATION and draws.random() < 0.6:
        return turned_by(draws.randrange(10))
    count = draws.choice((1, 1, 1, 0, 2, 3, 1000, 2**31, 2**32 - 1))
    value = struct.pack("<I", draws.randrange(150)) if draws.random() < 0.6 else draws.randbytes(4)
    return tag, draws.choice((*range(14), 16, 99)), count, value


def random_block(draws: random.Random) -> bytes:
    whole = block([random_entry(draws) for _ in range(draws.randrange(9))]) + draws.randbytes(draws.randrange(80))
    if draws.random() < 0.2:
        return whole[: draws.randrange(len(whole))]
    if draws.random() < 0.2:
        place = draws.randrange(len(whole))
        return whole[:place] + draws.randbytes(1) + whole[place + 1 :]
    return whole


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def in_jpeg(array: np.ndarray, content: bytes, marker: bytes = b"\xff\xe1", name: bytes = b"Exif\0\0") -> bytes:
    whole = encoded(array, "JPEG")
    return whole[:2] + marker + struct.pack(">H", len(name + content) + 2) + name + content + whole[2:]


def in_mpo(array: np.ndarray, content: bytes) -> bytes:
    return in_jpeg(array, content, b"\xff\xe2", b"MPF\0")


def in_png(array: np.ndarray, content: bytes) -> bytes:
    whole = encoded(array, "PNG")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return whole[:33] + chunk + whole[33:]


def in_webp(array: np.ndarray, content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "WEBP", lossless=True, exif=content)
    return buffer.getvalue()


def in_tiff(array: np.ndarray, content: bytes) -> bytes:
    """With the directory's entries beside the photo's own."""
    whole = encoded(array, "TIFF")
    (start,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, start)
    own = [struct.unpack_from("<HHI4s", whole, start + 2 + 12 * index) for index in range(count)]
    more = [struct.unpack_from("<HHI4s", content, place) for place in range(10, len(content) - 12, 12)]
    more = [
        entry for entry in more if entry[0] in TAGS and entry[1] < 5 and entry[2] == 1
    ]  # of others the place is wrong, too
    return whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + directory(sorted([*own, *more]))


KINDS = {"jpeg": in_jpeg, "mpo": in_mpo, "png": in_png, "webp": in_webp, "tiff": in_tiff}
LARGE = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_random_metadata_spoil_no_photo(kind: str, tmp_path: Path) -> None:
    draws = random.Random(kind)
    path = tmp_path / "photo"
    for index in range(BLOCKS // len(KINDS)):
        path.write_bytes(KINDS[kind](LARGE, random_block(draws)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none leaks
            photo, orientation, _ = read_turned(path)
            assert size_and_orientation(str(path)) == (photo.shape[1::-1], orientation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller's own
            with Image.open(path) as image:
                assert np.array_equal(read_photo(image), photo), index
        stored = encoded(LARGE, "JPEG") if kind in ("jpeg", "mpo") else encoded(LARGE, "PNG")
        with Image.open(io.BytesIO(stored)) as image:
            turn = TURNS.get(orientation)
            assert np.array_equal(photo, np.asarray(image if turn is None else image.transpose(turn))), index


FAR = "a place beyond the end, before the orientation"  # of a TIFF it hides the pixels
BROKEN: dict[str, list[Entry]] = {  # beside the orientation
    "a text that is no text": [(0x010F, 2, 3, b"\xff\xfe\xfd\0")],
    "a directory that lies nowhere": [(EXIF_IFD, 4, 1, b"\xff\xff\xff\x7f")],
    "a directory inside itself": [(EXIF_IFD, 4, 1, struct.pack("<I", 8))],
    "a directory whose place is a text": [(EXIF_IFD, 2, 4, b"abc\0")],
    "a GPS directory whose place is a fraction": [(GPS_IFD, 5, 1, struct.pack("<I", 8))],
    "two places of a directory": [(GPS_IFD, 3, 2, b"\1\0\2\0")],
    "interoperability without EXIF": [(INTEROP_IFD, 4, 1, struct.pack("<I", 8))],
    "a maker's note of nothing": [(MAKER_NOTE, 7, 0, bytes(4))],
    "a resolution with the denominator 0": [(0x011A, 5, 1, struct.pack("<I", 2)), (0x0128, 3, 1, b"\2\0\0\0")],
    FAR: [(0x010F, 2, 9, b"\xff\xff\xff\x7f")],
    "more bytes than there are": [(0x0131, 7, 2**32 - 1, bytes(4))],
    "an unknown type": [(0x0132, 99, 1, bytes(4))],
}


PAIRS = [(kind, broken) for kind in KINDS for broken in BROKEN if kind != "mpo" and (kind, broken) != ("tiff", FAR)]


@pytest.mark.parametrize(("kind", "broken"), PAIRS)
def test_the_orientation_counts_beside_what_is_broken(kind: str, broken: str) -> None:
    for orientation in range(1, 9):
        stored = np.repeat(np.repeat(STORED[orientation], 16, 0), 16, 1)
        entries = sorted([turned_by(orientation), *BROKEN[broken]])
        photo, found, _ = read_turned(KINDS[kind](stored, block(entries)))
        assert found == orientation
        assert photo.shape == (32, 48, 3) and abs(photo[8::16, 8::16].astype(int) - UPRIGHT).max() < 60


def test_a_drafted_photo_is_turned_too_and_says_its_whole_size() -> None:
    """JPEGs alone, of RGB and greys, are decoded smaller; never below what is wanted."""
    for orientation in range(1, 9):
        stored = np.repeat(np.repeat(STORED[orientation], 33, 0), 33, 1)
        for kind, sides, shape in (
            ("jpeg", 16, (17, 25, 3)),
            ("jpeg", 17, (33, 50, 3)),
            ("jpeg", 67, (66, 99, 3)),
            ("png", 16, (66, 99, 3)),
        ):
            file = KINDS[kind](stored, block([turned_by(orientation)]))
            photo = read_turned(file, least=lambda height, width, sides=sides: (sides, sides))  # type: ignore[misc]
            assert (photo.size, photo.orientation, photo.pixels.shape) == ((66, 99), orientation, shape)
            step = shape[0] / 2
            places = np.ix_(*((np.arange(count) * step + step / 2).astype(int) for count in (2, 3)))
            assert abs(photo.pixels[places].astype(int) - UPRIGHT).max() < 60
    for kind, mode, shape in (("MPO", "RGB", (17, 25, 3)), ("JPEG", "L", (17, 25, 3)), ("JPEG", "CMYK", (66, 99, 3))):
        buffer = io.BytesIO()
        image = Image.new(mode, (99, 66))
        image.save(buffer, kind, append_images=[image])
        photo = read_turned(buffer, least=lambda height, width: (height // 4, width // 4))
        assert (photo.size, photo.pixels.shape) == ((66, 99), shape), (kind, mode)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mpo"])
@pytest.mark.parametrize(
    "entry",
    [
        (ORIENTATION, 3, 1, b"\0\0\0\0"),
        (ORIENTATION, 3, 1, b"\x09\0\0\0"),
        (ORIENTATION, 3, 1, b"\xff\xff\0\0"),
        (ORIENTATION, 2, 2, b"6\0\0\0"),
        (ORIENTATION, 7, 4, b"\6\0\0\0"),
        (ORIENTATION, 11, 1, struct.pack("<f", 5.5)),
        (ORIENTATION, 11, 1, struct.pack("<f", float("nan"))),
        (ORIENTATION, 99, 1, b"\6\0\0\0"),
    ],
)
def test_an_orientation_that_is_none_is_upright(kind: str, entry: Entry) -> None:
    photo, orientation, _ = read_turned(KINDS[kind](LARGE, block([entry])))
    assert orientation == 1 and photo.shape == LARGE.shape


@pytest.mark.parametrize("content", [b"", b"junk", b"II*\0", b"MM\0*\0\0\0\x08", block([(0x010F, 2, 1, b"a\0\0\0")])])
def test_xmp_tells_the_orientation_where_exif_does_not(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's own opening
        image = Image.open(io.BytesIO(in_jpeg(LARGE, content)))
    with image:
        image.info["xmp"] = b'<x tiff:Orientation="6"/>'
        assert read_turned(image).orientation == 6
        image.info["xmp"] = 17  # whatever a program has put there
        assert read_turned(image).orientation == 1


def test_a_cut_photo_stays_a_bad_one_whatever_its_metadata_say(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    readers: list[Callable[[str], object]] = [read_photo, size_and_orientation]
    for kind in KINDS:
        for entries in ([turned_by(6)], BROKEN["a directory that lies nowhere"]):
            whole = KINDS[kind](noise, block(entries))
            if kind == "tiff":  # its directory is its end
                whole = whole.replace(struct.pack("<I", len(encoded(noise, "TIFF"))), struct.pack("<I", 99_999), 1)
            path = tmp_path / "cut.img"
            path.write_bytes(whole[: len(whole) * 2 // 3])
            for read in readers:
                with pytest.raises(InputError, match=r"cut\.img: not a readable image"):
                    read(str(path))


def test_words_for_labels_of_the_unturned_photo() -> None:
    assert "EXIF orientation 6" in turn_words(6, (96, 128), (128, 96))
    assert turn_words(3, (96, 128), (128, 96)) == turn_words(6, (96, 128), (96, 127)) == ""
