#!/usr/bin/env python3
"""Is a Triton server well? A photo of one pixel must come back as segments: its own health calls stay READY when a
model's process has died. Exit status 0 or 1, with one line. Needs nothing but Python.

With the address of its metrics, and a file to remember them in, a server is also well that has no time for the photo
but has answered others since the last time: it is to have fewer of them, and not to start anew.

Usage: probe.py [http://127.0.0.1:8000 [http://127.0.0.1:8002/metrics FILE]]
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import struct
import sys
import urllib.error
import urllib.request
import zlib

SECONDS = 8.0  # for the photo
METRICS_SECONDS = 1.5  # for the metrics
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def pixel() -> bytes:
    """A PNG of one grey pixel."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\x80\x80\x80"))]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in [*chunks, (b"IEND", b"")]:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def answered(metrics: str, file: str) -> float:
    """Requests that the server has answered since the last call with this file; not a number where nobody knows."""
    before = math.nan
    with contextlib.suppress(OSError, ValueError), open(file) as kept:
        before = float(kept.read())
    try:
        with OPENER.open(metrics, timeout=METRICS_SECONDS) as reply:
            lines = reply.read().decode().splitlines()
        now = sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_request_success{"))
        with open(file, "w") as kept:
            kept.write(str(now))
    except (OSError, ValueError, IndexError, http.client.HTTPException):
        return math.nan
    return now - before


def main(url: str = "http://127.0.0.1:8000", metrics: str = "", file: str = "") -> int:
    others = answered(metrics, file) if metrics else math.nan
    photo = struct.pack("<I", len(pixel())) + pixel()
    request = {
        "inputs": [
            {"name": "photo", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(photo)}}
        ],
        "outputs": [{"name": "segments_json", "parameters": {"binary_data": False}}],
    }
    text = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    try:
        post = urllib.request.Request(f"{url}/v2/models/upsnet_photo/infer", text + photo, headers)
        with OPENER.open(post, timeout=SECONDS) as reply:
            (output,) = json.load(reply)["outputs"]
            segments = json.loads(output["data"][0])
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(500).decode(errors='replace')}")
        return 1
    except TimeoutError:
        if others > 0:  # and a number
            print(f"busy: no answer within {SECONDS:g} s, but {others:.0f} others since the last time")
            return 0
        print(f"no answer within {SECONDS:g} s")
        return 1
    except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        return 1
    print(f"well: {len(segments)} segments")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
