"""Files and folders that are either complete or absent, and JSON with errors that name the file."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upsnet.errors import InputError

PathLike = str | os.PathLike[str]


@contextmanager
def writing(target: PathLike) -> Iterator[None]:
    """What the system refuses inside is an InputError that names `target`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; rename it to `path` on success, remove it on any error.

    Missing parent folders are made. Raises InputError when the folder cannot be written to.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        yield temporary
        with writing(target):  # it is a folder, for one
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder; on success its files move into `out` (made if absent, other files there stay).

    The folder lies in `out`, or in its nearest parent that exists, hence on the same file system: each file, or folder
    that is new, arrives by one rename, files in `out` itself last. On an error nothing reaches `out`.
    Raises InputError when `out` is a file or cannot be written to.
    """
    nearest = out.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{out}: {nearest} is a file, not a folder")
    with writing(out):
        stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=nearest))
    try:
        yield stage
        _move_into(stage, out)
    finally:
        shutil.rmtree(stage)


def _move_into(source: Path, target: Path) -> None:
    """What is in one folder goes into another: subfolders first, those that the other has not as they are."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for entry in sorted(os.scandir(source), key=lambda entry: entry.is_file()):
            if entry.is_dir() and (target / entry.name).exists():
                _move_into(Path(entry.path), target / entry.name)
            else:
                os.replace(entry.path, target / entry.name)
    except OSError as error:
        place = error.filename2 or error.filename or target
        raise InputError(f"{place}: cannot be written: {error.strerror}") from error


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: object) -> None:
    """Write strict JSON atomically. NaN and infinity are a ValueError: no other JSON reader accepts them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:  # JSON has no type before somebody has looked at it
    """Read a JSON file. Raises InputError, naming the file, when it is missing, unreadable or malformed."""
    try:
        with _no_collection():
            return json.loads(Path(path).read_bytes())  # UTF-8, or UTF-16 or 32, with or without a mark at its start
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: malformed JSON, or bytes that are no text
        raise InputError(f"{path}: not valid JSON: {error}") from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for cycles, which a JSON cannot hold: it looks at millions of new objects again and again, and
    takes longer than reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def sha256(path: PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises InputError when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
