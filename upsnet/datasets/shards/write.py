"""A data set in folders -> shards: WebDataset's tars, the JSON as it is, and an index of where everything lies."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from upsnet import storage
from upsnet.datasets.doctor.image import ImageTask, check_images
from upsnet.datasets.findings import Strict
from upsnet.datasets.panoptic_json import PanopticJson, Row
from upsnet.datasets.parallel import chunked, map_parallel, usable_cores
from upsnet.datasets.places import File, Files, read_file
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.shard_index import ENTRY, PNG, Images, Index, Shard, key_of, photo_member
from upsnet.datasets.split import INDEX, ShardSplit, Split
from upsnet.errors import InputError
from upsnet.files import ending_on_sigterm, staged_folder, writing, writing_only

CHUNK = 32  # images that a process looks at at once
FEW = 256  # images for which another process is not worth its start
MIB = 1 << 20
MOST = (1 << 31) - 1  # bytes of a photo or a PNG
Check = Literal["full", "json"]
Deliver = Callable[[Path], None]  # takes a finished file to where the set shall lie


@dataclass(frozen=True)
class Written:
    split: ShardSplit
    index: Index
    warnings: list[str]  # the doctor's, one line a kind

    @property
    def size(self) -> int:
        """Bytes of the tars."""
        return sum(shard.size for shard in self.index.shards)


def write_shards(
    source: Split | ShardSplit,
    out: str,
    shard_size: int = 256 * MIB,
    check: Check = "full",
    workers: int | None = None,
    progress: bool = True,
) -> Written:
    """The set becomes OUT/NAME-000000.tar, ..., OUT/NAME.json and OUT/NAME.shards.json; `out` is a folder or a URL.

    In a folder all appear at once. Behind a URL each tar is uploaded when it is full and the index comes last: a set
    without it is not there. The same data give the same bytes. shard_size: bytes that a tar does not exceed, unless one
    image is larger. check: every photo and PNG is looked at first (full), or the JSON, and whether they are there.
    Raises InputError for what the doctor calls an error, a set of this name that is there, and what cannot be written.
    """
    name = source.name
    split = ShardSplit(shards=storage.join(out, f"{name}{INDEX}"))

    strict = Strict(source.json_file)
    chart = PanopticJson(source, strict)
    content = read_file(source.json_file)

    def in_the_way() -> list[Path]:
        if storage.exists(split.shards):
            raise InputError(f"{split.shards}: is there already; remove that set, or give another --out")
        if storage.exists(split.json_file) and storage.read(split.json_file) != content:
            raise InputError(f"{split.json_file}: is there already, of another data set; give another --out")
        return []

    in_the_way()  # before the work; and again when it is done, as another run may have written there
    rows = list(chart.rows())  # faults of the JSON come before the first image is read
    count = len(rows) if check == "full" else 0
    processes = workers or (usable_cores() if count > FEW else 1)
    with (
        _delivery(out, in_the_way) as (folder, deliver),
        progress_bar(total=len(rows), title=name, shown=progress) as bar,
    ):
        writer = ShardWriter(folder, name, shard_size, deliver)
        with writer:
            for part in _checked(rows, chart.files, strict, processes if check == "full" else 0):
                for row in part:
                    writer.add(row, chart.images[row.image_id], chart.annotations[row.image_id], chart.files)
                bar.update(len(part))
        index = writer.index(hashlib.sha256(content).hexdigest())
        for file_name, data in ((f"{name}.json", content), (f"{name}{INDEX}", _compact(index.model_dump()))):
            (folder / file_name).write_bytes(data)
            deliver(folder / file_name)
    return Written(split, index, strict.warnings.lines(source.json_file))


class ShardWriter:
    """Writes samples one after another, each in one tar. A full tar goes to `deliver`."""

    def __init__(self, folder: Path, name: str, shard_size: int, deliver: Deliver) -> None:
        self._folder, self._name, self._shard_size, self._deliver = folder, name, shard_size, deliver
        self._shards: list[Shard] = []
        self._columns: dict[str, list[int]] = {key: [] for key in Images.model_fields}
        self._stream: Hashed | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._close()
        elif self._stream:
            self._stream.abandon()

    def add(self, row: Row, image: dict[str, Any], annotation: dict[str, Any], files: Files) -> None:
        """KEY.jpg, or as the photo's suffix is, KEY.panoptic.png, and KEY.json with the JSON's two entries."""
        key = key_of(row.image_id)
        members = [
            (photo_member(row.image_id, row.photo), self._read(row, files.photo(row.image_id, row.photo))),
            (f"{key}{PNG}", self._read(row, files.png(row.image_id, row.png))),
            (f"{key}{ENTRY}", _compact({"image": image, "annotation": annotation})),
        ]
        needed = sum(tarfile.BLOCKSIZE * (2 + len(content) // tarfile.BLOCKSIZE) for _, content in members)
        if self._stream and self._stream.size + needed + tarfile.RECORDSIZE > self._shard_size:
            self._close()
        if self._stream is None:
            self._path = self._folder / f"{self._name}-{len(self._shards):06d}.tar"
            self._stream, self._images = Hashed(self._path), 0
        starts = [self._stream.add(*member) for member in members]
        self._images += 1
        values = (row.image_id, len(self._shards), starts[0], len(members[0][1]), starts[1], len(members[1][1]))
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def _read(self, row: Row, file: File) -> bytes:
        content = read_file(file)
        if not 0 < len(content) <= MOST:
            raise InputError(f"image {row.image_id}: {file}: {len(content)} bytes; a photo or PNG has 1 to {MOST}")
        return content

    def _close(self) -> None:
        if self._stream is None:
            return
        digest = self._stream.finish()
        size = self._stream.size
        self._shards.append(Shard(name=self._path.name, size=size, sha256=digest, images=self._images))
        self._stream = None
        self._deliver(self._path)

    def index(self, json_sha256: str) -> Index:
        """Of all that was written."""
        return Index(json_sha256=json_sha256, shards=self._shards, images=Images(**self._columns))


class Hashed:
    """A tar (ustar; no times, no owners: the same content gives the same bytes), and the digest of it as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = open(path, "wb", buffering=MIB)  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.size = 0  # bytes so far

    def add(self, name: str, content: bytes) -> int:
        """Returns where the content starts."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        start = self.size
        self._write(content)
        self._write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
        return start

    def finish(self) -> str:
        """Returns the SHA-256 of the whole."""
        self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._write(b"\0" * (-self.size % tarfile.RECORDSIZE))
        with writing(self._path):
            self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        with suppress(OSError):  # the disk that is full is said of already
            self._file.close()

    def _write(self, content: bytes) -> None:
        with writing(self._path):
            self._file.write(content)
        self._digest.update(content)
        self.size += len(content)


@contextmanager
def _delivery(out: str, in_the_way: Callable[[], list[Path]]) -> Iterator[tuple[Path, Deliver]]:
    """A folder to write into, and what takes a file of it to `out`."""
    if not storage.is_url(out):
        with staged_folder(Path(out), in_the_way) as stage:
            yield stage, lambda path: None  # all arrive together
        return
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="upsnet-shards-") as name:
        folder = Path(name)

        def upload(path: Path) -> None:
            storage.upload(path, storage.join(out, path.name))
            path.unlink()

        with writing_only(folder, folder):
            yield folder, upload


def _checked(rows: Sequence[Row], files: Files, strict: Strict, processes: int) -> Iterator[list[Row]]:
    """The rows in parts, when the doctor has looked at their images. processes 0: he does not. InputError."""
    parts = chunked(rows, CHUNK)
    if not processes:
        yield from parts
        return
    waiting: list[list[Row]] = []

    def tasks() -> Iterator[list[ImageTask]]:
        for part in parts:
            waiting.append(part)
            yield [_task(row, files) for row in part]

    for tally, error in map_parallel(partial(check_images, stop=True), tasks(), processes):
        if error:
            raise InputError(f"{strict.path}: {error}")
        strict.warnings.add(tally)
        yield waiting.pop(0)


def _task(row: Row, files: Files) -> ImageTask:
    photo, png = files.photo(row.image_id, row.photo), files.png(row.image_id, row.png)
    return ImageTask(row.image_id, photo, png, row.size, row.segments, row.boxes)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
