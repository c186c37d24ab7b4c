"""Files and folders that are either complete or absent, and JSON with errors that name the file."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

from upsnet.errors import InputError, first_line

PathLike = str | os.PathLike[str]


PARTIAL = ".partial-"  # how the name of a staged folder begins
DEVICE = "a device or a pipe; give the name of a file"
# What the system says of a disk without room, whatever file it was about to write.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(InputError):
    """What the system does not let us write, and why."""

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(os.fspath(path), reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path}: cannot be written: {reason}"


@contextmanager
def writing(target: PathLike) -> Iterator[None]:
    """What the system refuses inside is a WriteError that names `target`."""
    try:
        yield
    except OSError as error:
        raise WriteError(target, error.strerror or first_line(error)) from error


@contextmanager
def writing_only(target: PathLike, temporary: Path) -> Iterator[None]:
    """Like `writing`, of what concerns the file or folder `temporary`, which becomes `target`, and full disks alone."""
    try:
        yield
    except WriteError as error:
        path, reason = error.args
        if not Path(path).is_relative_to(temporary):
            raise
        raise WriteError(Path(target) / Path(path).relative_to(temporary), reason) from error
    except OSError as error:
        names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        ours = next((name for name in names if name.is_relative_to(temporary)), temporary)
        if error.errno not in FULL and ours not in names:
            raise
        place = Path(target) / ours.relative_to(temporary)
        raise WriteError(place, error.strerror or first_line(error)) from error


def check_target(path: PathLike) -> None:
    """WriteError before long work for what `atomic_path` would refuse after it: a folder, a device, a place where
    nothing can be written. Makes nothing."""
    if os.path.isdir(path):
        raise WriteError(path, "a folder; give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise WriteError(path, DEVICE)
    nearest = Path(os.path.realpath(path)).parent
    while not nearest.exists():
        nearest = nearest.parent
    with writing(path), tempfile.NamedTemporaryFile(dir=nearest, prefix=".upsnet-"):
        pass


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; rename it to `path` on success, remove it on any error.

    Missing parent folders are made; what a link leads to is written. The file has the mode that the umask gives,
    whatever wrote it. Raises WriteError, an InputError, for what the system refuses to write, and for a device or a
    pipe, which a rename would replace.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise WriteError(path, DEVICE)
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    beginning = target.stem[:32]  # a name may be as long as a name can be
    temporary = target.with_name(f".{beginning}.{uuid.uuid4().hex[:8]}{target.suffix}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        with writing_only(target, temporary):
            yield temporary
        with writing(target):  # it is a folder, for one
            if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors' own is for its owner alone
                temporary.chmod(mode)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there. InputError: that is a file."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{folder}: {nearest} is a file, not a folder")
    return nearest


def longest_name(folder: Path) -> int:
    """How many bytes a file's name may have there, or will where the folder is made; 255 where the system tells no
    number."""
    told = os.pathconf(existing_folder(folder), "PC_NAME_MAX") if hasattr(os, "pathconf") else 0
    return told if told > 0 else 255


@contextmanager
def staged_folder(out: Path, in_the_way: Callable[[], Sequence[Path]] = list, at: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder; on success its files move into `out` (made if absent, other files there stay).

    The folder lies in `out`, or in its nearest parent that exists, hence on the same file system: each file, or folder
    that is new, arrives by one rename, files in `out` itself last. On an error nothing reaches `out`; SIGTERM ends the
    program as an error does, with status 143.
    in_the_way: asked at the end for files and folders in `out` that go; it may raise. Signals wait for the renames.
    at: the folder lies there, where others look into `out` meanwhile.
    Raises InputError when `out` is a file or cannot be written to, and when the disk is full.
    """
    with ExitStack() as rubbish, ending_on_sigterm():
        with writing(out):
            nearest = at or existing_folder(out)
            stage = _temporary(nearest, rubbish)
        with writing_only(out, stage):
            yield stage
        with signals_wait():
            if old := in_the_way():
                aside = _temporary(nearest, rubbish)
                for number, path in enumerate(old):
                    with writing(path):
                        os.replace(path, aside / str(number))
            _move_into(stage, out)


def _temporary(above: Path, rubbish: ExitStack) -> Path:
    """A new hidden folder, which is removed with `rubbish`."""
    folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=above))
    rubbish.callback(shutil.rmtree, folder)
    return folder


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Where nobody else handles SIGTERM, it raises SystemExit inside, so that what is half-made is removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(SIGTERM, lambda *_: sys.exit(128 + SIGTERM))
    try:
        yield
    finally:
        signal.signal(SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_wait(numbers: Sequence[int] = (SIGINT, SIGTERM)) -> Iterator[None]:
    """Ctrl-C and SIGTERM, or these signals, come after this."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[int] = []
    handlers = {each: signal.signal(each, lambda number, _: came.append(number)) for each in numbers}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _move_into(source: Path, target: Path) -> None:
    """What is in one folder goes into another: subfolders first, those that the other has not as they are; then files,
    in the order of their names."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for entry in sorted(os.scandir(source), key=lambda entry: (entry.is_file(), entry.name)):
            try:
                os.replace(entry.path, target / entry.name)
            except OSError as error:
                if not (entry.is_dir() and error.errno in (errno.ENOTEMPTY, errno.EEXIST)):
                    raise
                _move_into(Path(entry.path), target / entry.name)
    except OSError as error:
        raise WriteError(error.filename2 or error.filename or target, error.strerror or first_line(error)) from error


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text atomically. What a file's name holds besides text is written escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def user_cache() -> Path | None:
    """The folder for what this project can make anew: $XDG_CACHE_HOME/upsnet-trt, else ~/.cache/upsnet-trt.

    None where there is no home. It may not be there yet.
    """
    above = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(above) if os.path.isabs(above) else Path.home() / ".cache") / "upsnet-trt"
    except RuntimeError:
        return None


def write_json(path: PathLike, value: object) -> None:
    """Write strict JSON atomically. NaN and infinity are a ValueError: no other JSON reader accepts them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: PathLike, change: Callable[[dict[str, Any]], Any] | None = None) -> Any:  # JSON has no type
    """Read a JSON file. `change` makes another thing of each object in it, the inner ones first.

    Raises InputError, naming the file, when it is missing, unreadable or malformed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json(content, path, change)


def parse_json(content: bytes, path: PathLike, change: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The same of the bytes of a file, which messages call `path`: UTF-8, or UTF-16 or 32, with or without a mark at
    their start."""
    try:
        with _no_collection():
            return json.loads(content, object_hook=change)
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


def check_utf8(path: PathLike, who: str) -> None:
    """InputError for a path of which `who`, a library, could not make a text. Python itself opens any file."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: {who} opens nothing whose name or folder is not UTF-8; rename it") from None


def sha256(path: PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises InputError when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
