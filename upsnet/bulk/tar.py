"""A block as a tar: NAME.png and NAME.json for each photo, as WebDataset has samples, and the block's own files.

Those stand in __block__/, which WebDataset passes over: 000012/head.json, the first member, of one size, so that one
read of the file's beginning tells what the block holds; 000012/predictions.json, all annotations in the COCO panoptic
format; 000012/left_out.jsonl, the photos that have no prediction, with the reasons. Nothing in it depends on when or
where it was made.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from upsnet import storage
from upsnet.bulk.plan import Plan
from upsnet.bulk.row import Failure, Row, Summary, naming_damage

OWN = "__block__"
BLOCK = tarfile.BLOCKSIZE
HEAD_START, HEAD_SIZE = BLOCK, 1024  # bytes; the head's place in the file


class TarWriter:
    def __init__(self, stream: IO[bytes], plan: Plan, number: int) -> None:
        self._stream, self._plan, self._number = stream, plan, number
        self._rows = 0
        self._annotations: list[dict[str, Any]] = []
        self._left_out: list[Failure] = []
        self._own("head.json", bytes(HEAD_SIZE))

    def add(self, row: Row) -> None:
        self._rows += 1
        if row.error:
            self._left_out.append(Failure(row.image_id, row.name, row.photo, row.error))
            return
        self._add(f"{row.name}.png", row.png)
        more = {"photo": row.photo, "height": row.height, "width": row.width, "crc32": row.crc32}
        self._add(f"{row.name}.json", _json(row.annotation | more))
        self._annotations.append(row.annotation)

    def end(self) -> None:
        plan = self._plan
        self._own("predictions.json", _json({"annotations": self._annotations, "categories": plan.categories}))
        lines = b"".join(_json(each._asdict()) + b"\n" for each in self._left_out)
        start = self._own("left_out.jsonl", lines) if lines else 0
        self._stream.write(bytes(2 * BLOCK))
        head = {
            "block": self._number,
            "photos": self._rows,
            "left_out": len(self._left_out),
            "left_out_bytes": [start, len(lines)],
            "left_out_crc32": zlib.crc32(lines),
            "model_digest": plan.model_digest,
        }
        self._stream.seek(HEAD_START)
        self._stream.write(_json(head).ljust(HEAD_SIZE - 1) + b"\n")

    def _own(self, name: str, content: bytes) -> int:
        return self._add(f"{OWN}/{self._number:06}/{name}", content)

    def _add(self, name: str, content: bytes) -> int:
        """Where its bytes begin."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._stream.write(info.tobuf(tarfile.PAX_FORMAT))
        start = self._stream.tell()
        self._stream.write(content + bytes(-len(content) % BLOCK))
        return start


def read_summary(place: str) -> Summary:
    """Two small reads at most. Raises InputError where it is no block's file."""
    with naming_damage(place):
        head = json.loads(storage.read(place, HEAD_START, HEAD_SIZE))
        start, size = head["left_out_bytes"]
        lines = storage.read(place, start, size) if size else b""
        if zlib.crc32(lines) != head["left_out_crc32"]:
            raise ValueError("the photos that were left out are not what was written")
        left_out = [Failure(**json.loads(line)) for line in lines.splitlines()]
        return Summary(head["block"], head["photos"], head["model_digest"], left_out)


def read_rows(place: str) -> Iterator[Row]:
    """Those that were predicted, each of them as it was written. Raises InputError."""
    with (
        naming_damage(place, tarfile.TarError),
        storage.reading_file(place) as stream,
        tarfile.open(fileobj=stream, mode="r:") as tar,
    ):
        png = b""
        for info in tar:
            if info.name.startswith(f"{OWN}/"):
                continue
            content = tar.extractfile(info)
            if content is None:
                raise ValueError(f"{info.name!r} is no file")
            if info.name.endswith(".png"):
                png = content.read()
                continue
            entry = json.load(content)
            name = info.name.removesuffix(".json")
            size, segments = (entry["height"], entry["width"]), tuple(entry["segments_info"])
            row = Row(entry["image_id"], name, entry["photo"], "", *size, png, segments)
            yield row.checked(entry["crc32"])


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
