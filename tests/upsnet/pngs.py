"""PNG files by hand, for what Pillow does not write."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """depth: bits a channel; color: the standard's number (2: RGB); rows: compressed, each after its filter's byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
