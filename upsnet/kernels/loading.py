"""Loading a compiled library: whose code it may be, whether it is whole, and what to do where it is not."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import stat
import struct
from pathlib import Path

ELF64 = b"\x7fELF\x02\x01"  # of 64 bits, the least significant byte first
OWN = "make a copy of your own, and name its folder in UPSNET_OPERATORS"
FOLDER = r"\w+-[0-9a-f]{24}"  # of a library that was compiled on first use


class BuildError(RuntimeError):
    """A library that cannot be compiled or loaded here; the text says why."""


def check_owners(library: Path, top: Path, copy: str = OWN) -> None:
    """BuildError where somebody else decides what code is in a library: the file, or a folder from the one that it lies
    in up to `top`, belongs to another user, or others may write to it.

    Its user, root and the owner of this package's own code are no others. A group that may write is let be: with
    umask 002 every checkout is so, and whoever may write there can change the Python code, too. copy: the cure for a
    file of another user.
    """
    folders = [path for path in library.parents if path == top or top in path.parents]
    for path in (*reversed(folders), library, Path(os.path.realpath(library)).parent):
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BuildError(f"no code is loaded from {path}: {error}") from error
        if found.st_mode & stat.S_IWOTH:
            cure = f"`chmod o-w {shlex.quote(str(path))}`"
            raise BuildError(f"{path}: others can write there, so no code is loaded from it; {cure}")
        if found.st_uid not in (0, os.geteuid(), Path(__file__).stat().st_uid):
            raise BuildError(f"{path}: it is of another user ({found.st_uid}), so no code is loaded from it; {copy}")


def load(library: Path) -> ctypes.CDLL:
    """The library, loaded. BuildError where that is not possible; the calls of it let other Python threads run."""
    try:
        check_whole(library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded ({_cure(library)}): {error}") from error


def check_whole(library: Path) -> None:
    """BuildError for a file that ends before its section headers do: to load it would end the process (SIGBUS)."""
    with library.open("rb") as file:
        head, size = file.read(64), os.fstat(file.fileno()).st_size
    if head[:6] != ELF64 or len(head) < 64:
        return  # the loader looks at these bytes itself, and says what is wrong
    (start,) = struct.unpack_from("<Q", head, 40)
    each, count = struct.unpack_from("<HH", head, 58)
    if start + each * count > size:
        raise BuildError(f"{library} is cut off: {size} bytes are left of {start + each * count}; {_cure(library)}")


def _cure(library: Path) -> str:
    if re.fullmatch(FOLDER, library.parent.name):
        return "delete it to have it made anew"
    return "make it anew with `make plugins` or `upsnet engine`"
