"""PNG and JPEG bytes with metadata: photos, and PNGs of segment ids."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Halves
from tests.fuzz.mutations import damaged, fuzzed, refused
from upsnet.datasets.coco_format import id2rgb, read_panoptic_png
from upsnet.model import Model
from upsnet.photos import read_photo

IDS = np.arange(48, dtype=np.int64).reshape(6, 8) * 70_001
GREY = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "maker"


def encode(image: Image.Image, kind: str, exif: bytes, text: str = "") -> bytes:
    stream = io.BytesIO()
    info = PngInfo()
    info.add_text("Comment", text)
    more = {"pnginfo": info} if kind == "png" else {"comment": text.encode(errors="replace")}
    image.save(stream, kind, exif=exif, icc_profile=exif[:40], **more)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, color: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


MODES = ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"]
KINDS = {"png": MODES[:-1], "jpeg": ["RGB", "L", "CMYK"]}
images = st.sampled_from([(kind, mode) for kind, modes in KINDS.items() for mode in modes])
exifs = st.one_of(
    st.just(EXIF.tobytes()), damaged(EXIF.tobytes()), st.binary(max_size=64).map(lambda x: b"Exif\0\0" + x)
)
BOMBS = [
    png(2**31 - 1, 2**31 - 1, 8, 2, chunk(b"IDAT", zlib.compress(bytes(64)))),
    png(30_000, 30_000, 1, 0, chunk(b"IDAT", zlib.compress(bytes(30_000 * 3751)))),
    png(0, 0, 8, 2, chunk(b"IDAT", zlib.compress(b""))),
    png(8, 6, 8, 2, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8))), chunk(b"IDAT", zlib.compress(bytes(150)))),
    png(8, 6, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8))), chunk(b"IDAT", zlib.compress(bytes(150)))),
    png(8, 6, 8, 2, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"), chunk(b"IDAT", zlib.compress(bytes(150)))),
    png(8, 6, 16, 2, chunk(b"tRNS", b"\0" * 5), chunk(b"IDAT", zlib.compress(bytes(300)))),
    png(8, 6, 8, 3, chunk(b"PLTE", b"\0" * 7), chunk(b"IDAT", zlib.compress(bytes(54)))),
    png(8, 6, 8, 2, *[chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\0" * 26)] * 2),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photo") / "photo.png"


def check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with refused(str(path)):
        photo = read_photo(path)
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and photo.size
    with refused(str(path)):
        ids = read_panoptic_png(path)
        assert ids.ndim == 2 and ids.min() >= 0 and ids.max() < 2**24
    with Model(Halves()) as model:
        if len(content) < 10_000:
            with refused("photo"):
                result = model.predict(content)
                assert result.ids.shape == read_photo(content).shape[:2]


@fuzzed(150)
@given(images, exifs, st.text(st.characters(codec="latin-1"), max_size=20), st.data())
def test_damaged(path: Path, image: tuple[str, str], exif: bytes, text: str, data: st.DataObject) -> None:
    kind, mode = image
    content = encode(GREY.convert("I").convert(mode) if mode == "I;16" else GREY.convert(mode), kind, exif, text)
    check(path, data.draw(st.one_of(st.just(content), damaged(content))))


@fuzzed(60)
@given(damaged(encode(Image.fromarray(id2rgb(IDS)), "png", b"")))
def test_damaged_ids(path: Path, content: bytes) -> None:
    check(path, content)


@pytest.mark.parametrize(
    "content", [*BOMBS, b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + b"\xff" * 60, b"\xff\xd8\xff\xe1\0\2"]
)
def test_bombs(path: Path, content: bytes) -> None:
    check(path, content)
