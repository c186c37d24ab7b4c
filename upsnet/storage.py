"""Bytes that lie on this machine or behind a URL: s3://, gs:// and whatever else fsspec knows.

    storage.read("s3://bucket/photos/1.jpg")
    storage.read("shards/train-000000.tar", start=1536, size=9000)
    storage.write("gs://bucket/out/000001.tar", content)

A place is text: a path, or a URL; file:// is a path. What is written is complete or absent, on a disk and in a bucket.
A path needs nothing; a URL needs fsspec and its package for that kind of URL (extra `remote`), else an InputError says
which. Keys, endpoints and proxies are what those packages find by themselves: docs/storage.md.

What fails for a moment (`upsnet.buckets`) is tried again. InputError is of the place that was asked for; ServerError,
which is one, of the bucket or the way to it: another place would not help, another hour may.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from upsnet import buckets
from upsnet.buckets import is_url, shown
from upsnet.errors import InputError, first_line
from upsnet.files import FULL, PathLike, WriteError, atomic_path

if TYPE_CHECKING:
    from upsnet.buckets import System

PART = 16 << 20  # bytes of a large file that are on their way at once
MOST_PARTS = 10_000  # of one file in S3
GAP = 4096  # bytes between two files that are read with them rather than asked for apart
AHEAD = 4 << 20  # bytes that are asked for at once where a file is read from its beginning on


@dataclass(frozen=True)
class Stored:
    """A file that lies in a larger one, as a photo in a shard's tar: bytes start .. start + size of a place."""

    place: str  # a path or a URL
    start: int
    size: int
    name: str  # in the larger file, for messages
    content: bytes | None = None  # where it was read already

    def read(self) -> bytes:
        """Raises InputError as `storage.read`."""
        return read(self.place, self.start, self.size) if self.content is None else self.content

    def __str__(self) -> str:
        return f"{shown(self.place)}: {self.name}"


def join(place: str, name: str) -> str:
    """The place of a file in a folder; of file:// a path, in which a name is what it is."""
    path = _path(place)
    return f"{place.rstrip('/')}/{name}" if path is None else os.path.join(path, name)


def read(place: str, start: int = 0, size: int | None = None, most: int | None = None) -> bytes:
    """`size` bytes from `start` on; None: all that follow. most: where that is more, an InputError, and not in memory.

    Raises InputError, naming the place, where it is not there, cannot be read, or holds fewer bytes; ServerError where
    its bucket does not answer.
    """
    limit = size if most is None else most + 1 if size is None else min(size, most + 1)
    if (path := _path(place)) is not None:
        content = _read_file(path, start, limit)
    elif limit == 0:
        content = b""  # a range cannot say so
    else:
        end = None if limit is None else start + limit
        content = buckets.ask(place, lambda system: _range(system, place, start, end))
    if most is not None and len(content) > most:
        raise InputError(f"{shown(place)}: over the limit of {most} bytes")
    if size is not None and len(content) != size:
        raise InputError(f"{shown(place)}: ends before byte {start + size}: it is not whole")
    return content


def read_together(first: Stored, second: Stored) -> tuple[Stored, Stored]:
    """Both with their content, neighbours of one place by one reading. Raises InputError as `read`."""
    end = first.start + first.size
    if first.place != second.place or not 0 <= second.start - end <= GAP:
        return replace(first, content=first.read()), replace(second, content=second.read())
    content = replace(first, size=second.start + second.size - first.start).read()
    one, other = content[: first.size], content[second.start - first.start :]
    return replace(first, content=one), replace(second, content=other)


def write(place: str, content: bytes) -> None:
    """All or nothing: a temporary name and a rename on a disk, one PUT (large: one upload in parts) in a bucket.

    Raises WriteError, an InputError, also for a URL whose kind has no such write, as sftp://; ServerError as `read`.
    """
    if (path := _path(place)) is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return
    buckets.ask(place, lambda system: system.pipe_file(place, content), writing=True)


def upload(path: PathLike, place: str) -> None:
    """A file of this disk becomes `place`, as `write` does it. At most four parts of it are in memory.

    Raises as `write`.
    """
    if (target := _path(place)) is not None:
        with atomic_path(target) as temporary:
            _copy_file(os.fspath(path), temporary)
        return
    part = max(PART, -(-os.path.getsize(path) // MOST_PARTS))
    options = {"chunksize": part, "max_concurrency": 4} if buckets.is_s3(place) else {}
    buckets.ask(place, lambda system: system.put_file(os.fspath(path), place, **options), writing=True)


def download(place: str, path: PathLike) -> None:
    """A file becomes `path` on this disk, complete or not at all; memory does not grow with it.

    Raises InputError and ServerError as `read`, WriteError where the disk has no room.
    """
    with atomic_path(path) as temporary:
        if (source := _path(place)) is not None:
            _copy_file(source, temporary)
            return
        expected = size(place)
        buckets.ask(place, lambda system: system.get_file(place, os.fspath(temporary)))
        if (came := temporary.stat().st_size) != expected:
            raise InputError(
                f"{shown(place)}: {came} bytes came of {expected}: it is not whole, or was written meanwhile"
            )


@contextmanager
def writing_file(place: str) -> Iterator[Path]:
    """Yields a path on this disk, whose file arrives at the place when all went well. Raises as `write`.

    For a URL it lies in the folder for temporary files (TMPDIR) meanwhile.
    """
    if (target := _path(place)) is not None:
        with atomic_path(target) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        temporary = Path(folder) / (place.rpartition("/")[2] or "file")
        try:
            yield temporary
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise WriteError(shown(place), f"{folder}, where it is made: {error.strerror}") from error
        upload(temporary, place)


@contextmanager
def reading_file(place: str) -> Iterator[IO[bytes]]:
    """A file to go to and fro in; of one behind a URL only what is read is fetched, in pieces of AHEAD bytes.

    Raises as `read`, also while it is read.
    """
    if (path := _path(place)) is None:
        with io.BufferedReader(_Remote(place), AHEAD) as stream:
            yield stream
        return
    try:
        here = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise _unreadable(path, error) from error
    with here:
        yield here


class _Remote(io.RawIOBase):
    """Reads of a file behind a URL, each of them one `read`."""

    def __init__(self, place: str) -> None:
        self._place, self._size, self._at = place, size(place), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = read(self._place, self._at, count)
        self._at += count
        return count


def size(place: str) -> int:
    """Bytes of a file. Raises InputError and ServerError as `read`."""
    if (path := _path(place)) is not None:
        try:
            return os.path.getsize(path)
        except OSError as error:
            raise _unreadable(path, error) from None
    return int(buckets.ask(place, lambda system: buckets.information(system, place))["size"])


def exists(place: str) -> bool:
    """ServerError where nobody can tell: the bucket does not answer. InputError where it refuses to."""
    if (path := _path(place)) is not None:
        return os.path.exists(path)

    def found(system: System) -> bool:
        try:
            buckets.information(system, place)  # `exists` of some systems says no where they were refused
        except FileNotFoundError:
            return False
        return True

    return buckets.ask(place, found)


def names(folder: str) -> set[str]:
    """Of the files in a folder, without those of folders below; none where there is no such folder.

    ServerError and InputError as `exists`; InputError where there is no such bucket.
    """
    return set(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """The same, with how many bytes each has."""
    if (path := _path(folder)) is not None:
        if not os.path.isdir(path):
            return {}
        return {entry.name: entry.stat().st_size for entry in os.scandir(path) if entry.is_file()}

    def listed(system: System) -> dict[str, int]:
        try:
            found = system.ls(folder, detail=True)
        except FileNotFoundError as error:
            if buckets.is_no_bucket(error):
                raise
            return {}
        below = str(system._strip_protocol(folder)).rstrip("/") + "/"
        files = {entry["name"].removeprefix(below): entry["size"] for entry in found if entry["type"] == "file"}
        # A folder may be an object of its own, and a file is listed as if it were its folder.
        return {name: length for name, length in files.items() if name and "/" not in name}

    return buckets.ask(folder, listed)


def _path(place: str) -> str | None:
    """Where it lies on this machine; None: behind a URL."""
    if not is_url(place):
        return place
    if not place.lower().startswith(("file://", "local://")):
        return None
    parts = urlsplit(place)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{place}: a file of another machine; give file:///folder/name, with three /")
    return unquote(place.partition("://")[2].removeprefix(parts.netloc))


def _range(system: System, place: str, start: int, end: int | None) -> bytes:
    try:
        content: bytes = system.cat_file(place, start=start if start or end else None, end=end)
    except Exception as error:
        if buckets.status_of(error) == 416:  # it ends before `start`
            return b""
        raise
    return content


def _read_file(path: str, start: int, size: int | None) -> bytes:
    try:
        with open(path, "rb") as stream:
            if size is None:
                stream.seek(start)
                return stream.read()
            content = os.pread(stream.fileno(), size, start)
            while len(content) < size and (
                more := os.pread(stream.fileno(), size - len(content), start + len(content))
            ):
                content += more  # Linux gives at most 2 GB at once
            return content
    except OSError as error:
        raise _unreadable(path, error) from error


def _copy_file(path: str, target: Path) -> None:
    """What is wrong with the source is an InputError, with the target an OSError."""
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise _unreadable(path, error) from error
    with stream, open(target, "wb") as copy:
        while block := stream.read(PART):
            copy.write(block)


def _unreadable(path: str, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file")
    return InputError(f"{path}: cannot be read: {error.strerror or first_line(error)}")
