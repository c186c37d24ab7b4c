#!/usr/bin/env python3
"""Is a Triton server well? A photo of one pixel must come back as segments: its own health calls stay READY when a
model's process has died. Exit status 0 or 1, with one line. Needs nothing but Python.

Usage: probe.py [http://127.0.0.1:8000]
"""

from __future__ import annotations

import json
import struct
import sys
import urllib.error
import urllib.request
import zlib

SECONDS = 8


def pixel() -> bytes:
    """A PNG of one grey pixel."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\x80\x80\x80"))]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in [*chunks, (b"IEND", b"")]:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def main(url: str = "http://127.0.0.1:8000") -> int:
    photo = struct.pack("<I", len(pixel())) + pixel()
    request = {
        "inputs": [
            {"name": "photo", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(photo)}}
        ],
        "outputs": [{"name": "segments_json", "parameters": {"binary_data": False}}],
    }
    text = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    post = urllib.request.Request(f"{url}/v2/models/upsnet_photo/infer", text + photo, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(post, timeout=SECONDS) as reply:
            (output,) = json.load(reply)["outputs"]
            segments = json.loads(output["data"][0])
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(500).decode(errors='replace')}")
        return 1
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        print(f"no answer: {error}")
        return 1
    print(f"well: {len(segments)} segments")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
