"""Bytes that lie on this machine or behind a URL: s3://, gs:// and whatever else fsspec knows.

    storage.read("s3://bucket/photos/1.jpg")
    storage.read("shards/train-000000.tar", start=1536, size=9000)
    storage.write("gs://bucket/out/000001.tar", content)

A place is text: a path, or a URL. What is written is complete or absent, on a disk and in a bucket. A path needs
nothing; a URL needs fsspec and its package for that kind of URL (extra `remote`), else an InputError says which.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from upsnet.errors import InputError, first_line
from upsnet.files import FULL, WriteError, atomic_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
GAP = 4096  # bytes between two files that are read with them rather than asked for apart


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
        return f"{self.place}: {self.name}"


def is_url(place: object) -> bool:
    """Whether it is text with a scheme, as s3://bucket/name."""
    return isinstance(place, str) and URL.match(place) is not None


def join(place: str, name: str) -> str:
    """The place of a file in a folder."""
    return f"{place.rstrip('/')}/{name}" if is_url(place) else os.path.join(place, name)


def read(place: str, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `start` on; None: all that follow.

    Raises InputError, naming the place, where it is not there, cannot be read, or holds fewer bytes.
    """
    if is_url(place):
        end = None if size is None else start + size
        content = _ask(place, lambda system: system.cat_file(place, start=start or None, end=end))
    else:
        content = _read_file(place, start, size)
    if size is not None and len(content) != size:
        raise InputError(f"{place}: ends before byte {start + size}: it is not whole")
    return content


def read_together(first: Stored, second: Stored) -> tuple[Stored, Stored]:
    """Both with their content, neighbours of one place by one reading."""
    end = first.start + first.size
    if first.place != second.place or not 0 <= second.start - end <= GAP:
        return replace(first, content=first.read()), replace(second, content=second.read())
    content = read(first.place, first.start, second.start + second.size - first.start)
    one, other = content[: first.size], content[second.start - first.start :]
    return replace(first, content=one), replace(second, content=other)


def write(place: str, content: bytes) -> None:
    """All or nothing: a temporary name and a rename on a disk, one PUT in a bucket. Raises InputError (WriteError)."""
    if not is_url(place):
        with atomic_path(Path(place)) as temporary:
            temporary.write_bytes(content)
        return
    _ask(place, lambda system: system.pipe_file(place, content), writing=True)


@contextmanager
def writing_file(place: str) -> Iterator[Path]:
    """Yields a path to write a file at, which arrives at the place if all went well. Raises InputError (WriteError)."""
    if not is_url(place):
        with atomic_path(Path(place)) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="upsnet-") as folder:
        local = Path(folder) / place.rpartition("/")[2]
        try:
            yield local
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise WriteError(place, f"{folder}, where it is made: {error.strerror}") from error
        upload(local, place)


@contextmanager
def reading_file(place: str) -> Iterator[IO[bytes]]:
    """A file in which one can go to and fro; of one behind a URL only what is read is fetched. Raises InputError."""
    stream = _ask(place, lambda system: system.open(place, "rb")) if is_url(place) else _open(place)
    with stream:
        yield stream


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def size(place: str) -> int:
    """Bytes of a file. Raises InputError as `read`."""
    if is_url(place):
        return _ask(place, lambda system: int(system.size(place)))
    try:
        return os.path.getsize(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror}") from error


def upload(path: Path, place: str) -> None:
    """A local file to a place, all or nothing, without holding it in memory. Raises as `write`."""
    if not is_url(place):
        with atomic_path(Path(place)) as temporary:
            shutil.copyfile(path, temporary)
        return
    _ask(place, lambda system: system.put_file(str(path), place), writing=True)


def exists(place: str) -> bool:
    return _ask(place, lambda system: system.exists(place)) if is_url(place) else os.path.exists(place)


def names(folder: str) -> set[str]:
    """Of the files in a folder, without those of folders below; none where there is no such folder."""
    if not is_url(folder):
        if not os.path.isdir(folder):
            return set()
        return {entry.name for entry in os.scandir(folder) if entry.is_file()}

    return set(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """The same, with how many bytes each has."""
    if not is_url(folder):
        if not os.path.isdir(folder):
            return {}
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}

    def listed(system: AbstractFileSystem) -> dict[str, int]:
        try:
            found = system.ls(folder, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"
        }

    return _ask(folder, listed)


def _read_file(path: str, start: int, size: int | None) -> bytes:
    try:
        with open(path, "rb") as stream:
            if size is None:
                stream.seek(start)
                return stream.read()
            return os.pread(stream.fileno(), size, start)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error


def _ask(place: str, question: Callable[[AbstractFileSystem], T], writing: bool = False) -> T:
    """What fsspec's file system for this kind of URL answers."""
    try:
        return question(_system(place))
    except FileNotFoundError:
        raise InputError(f"{place}: no such file") from None
    except Exception as error:  # each file system has its own
        if isinstance(error, InputError):
            raise
        if writing:
            raise WriteError(place, first_line(error)) from error
        raise InputError(f"{place}: cannot be read: {first_line(error)}") from error


def _system(place: str) -> AbstractFileSystem:
    """Raises InputError where the package for this kind of URL is not installed."""
    try:
        import fsspec

        kind = place.partition("://")[0]
        system: Any = fsspec.filesystem(kind)
    except ImportError as error:
        raise InputError(f"{place}: needs a package ({first_line(error)}): pip install 'upsnet-trt[remote]'") from None
    except ValueError as error:
        raise InputError(f"{place}: {first_line(error)}; give a path, s3:// or gs://") from None
    return system
