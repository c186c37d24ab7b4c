"""Photos and bodies that are small, and claim or become something large."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from functools import cache

from PIL import Image


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG of any claimed size; `pixels` is what its data decompress to."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@cache
def photos() -> dict[str, bytes]:
    """None of them can be answered with a result; by what is wrong with each."""
    buffer = io.BytesIO()
    Image.effect_noise((320, 240), 50).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    size_at = jpeg.index(b"\xff\xc0") + 5
    return {
        "huge header": png(65536, 65536, b"\0" * 1000),
        "decompression bomb": png(10_000, 10_000, b"\0" * 10_001 * 10_000),
        "bomb in metadata": _text_bomb(),
        "truncated": jpeg[: len(jpeg) // 3],
        "jpeg claims 65500 x 65500": jpeg[:size_at] + struct.pack(">HH", 65500, 65500) + jpeg[size_at + 4 :],
        "garbage": bytes(range(256)) * 16,
        "empty": b"",
        "text": b"<svg xmlns='http://www.w3.org/2000/svg' width='1e9' height='1e9'/>",
    }


def _text_bomb() -> bytes:
    """A compressed text of 64 MB in a picture of one pixel, which ends before its pixels."""
    start = png(1, 1, b"")[:33]
    content = b"Comment\0\0" + zlib.compress(b" " * (64 << 20), 9)
    return (
        start + struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    )


@cache
def gzipped(size: int) -> bytes:
    """`size` zeros."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as stream:
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return buffer.getvalue()


@cache
def one_byte_chunks(count: int = 600_000) -> bytes:
    """A chunked body that killed Triton 2.51's HTTP at 524 000 chunks."""
    return b"1\r\nx\r\n" * count + b"0\r\n\r\n"
