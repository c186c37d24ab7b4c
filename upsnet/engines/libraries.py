"""The libraries of custom operators beside an engine: whether they are those that it was built with, and load here."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from upsnet.engines.findings import Finding, failed, fine, unknown
from upsnet.engines.kinds import elf_machine, identify, read_head, regular_file
from upsnet.engines.manifest import Part
from upsnet.errors import InputError
from upsnet.files import sha256
from upsnet.kernels.loading import BuildError, check_owners, check_whole

ELF = b"\x7fELF"
LONGEST = 60  # seconds
# Asks a library for its numbers, in a process of its own: one that is broken may end it.
ASK = """
import ctypes, json, sys
try:
    library = ctypes.CDLL(sys.argv[1])
except OSError as error:
    print(json.dumps({"error": str(error)}))
else:
    names = {"abi": "upsnet_kernel_abi", "level": "upsnet_cpu_level"}
    found = {key: getattr(library, name, None) for key, name in names.items()}
    print(json.dumps({key: int(number()) for key, number in found.items() if number}))
"""


def stamp_of(path: Path) -> tuple[int, int, int, int]:
    """What changes with a file's content, without reading it."""
    found = regular_file(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def hash_of(path: Path) -> str:
    """Its SHA-256, which is computed once in a process for a file that stays as it is."""
    return _hash(path, stamp_of(path))


@lru_cache(maxsize=64)
def _hash(path: Path, stamp: tuple[int, int, int, int]) -> str:
    return sha256(path)


def check_library(part: Part, folder: Path, runs: bool = True) -> Finding:
    """Whether the file is the library that the engine was built with. Nothing of it is run.

    runs: its code will be, so nobody else may be able to write to it.
    """
    return _check(part, folder, runs).model_copy(update={"file": part.file})


def _check(part: Part, folder: Path, runs: bool) -> Finding:
    path, what = folder / part.file, "library"
    copy = f"copy {part.file} from where the engine was built, or build the engine again with `make engine`"
    if Path(part.file).name != part.file:
        return failed(what, "manifest damaged", f"the manifest names a library in another folder, {part.file}", copy)
    try:
        regular_file(path)
        head = read_head(path)
        if runs:
            check_owners(path, folder, _own_copy(folder))
    except InputError as error:
        text = f"the library {part.file} of its custom operators is missing beside it ({error})"
        return failed(what, "library missing", text, copy)
    except BuildError as error:
        text, _, cure = str(error).rpartition("; ")
        return failed(what, "library open to others", text, cure)
    if head.startswith(ELF) and (machine := elf_machine(head)) != platform.machine():
        text = f"{part.file} is for {machine or 'another processor'}, and this machine is {platform.machine()}"
        return failed(what, "platform", text, "build the engine on a machine of this kind")
    if hash_of(path) != part.sha256:
        return _altered(path, head, copy)
    return fine(what, f"{part.file} is the one that it was built with (sha256 {part.sha256[:8]})")


def _own_copy(folder: Path) -> str:
    """The cure for a library of another user: it is loaded from beside its engine, and from nowhere else."""
    return f"take a copy of the whole folder, which is yours: `cp -rL {shlex.quote(str(folder))} COPY`"


def _altered(path: Path, head: bytes, copy: str) -> Finding:
    """What a library is that is not the one that the engine was built with."""
    what = "library"
    if not head.startswith(ELF):
        kind = identify(path)
        return failed(what, "library altered", f"{path.name} is {kind.title}, not a shared library", kind.cure or copy)
    try:
        check_whole(path)
    except BuildError as error:
        return failed(what, "truncated", str(error).rpartition("; ")[0], copy)
    text = f"{path.name} is of another build than the one that the engine was built with (its sha256 differs)"
    return failed(what, "library altered", text, copy)


def try_library(path: Path, kernel_abi: int | None) -> Finding:
    """Loads it, in a process of its own. kernel_abi: that the engine needs; None: any."""
    what, again = "library", "build the engine again with `make engine`"
    try:
        check_owners(path, path.parent, _own_copy(path.parent))
    except BuildError as error:
        return unknown(what, f"{path.name} is not loaded: {error}")
    try:
        asked = subprocess.run(
            [sys.executable, "-PB", "-c", ASK, str(path.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST,
        )
        answer = json.loads(asked.stdout)
    except subprocess.TimeoutExpired:
        return unknown(what, f"{path.name} did not load within {LONGEST} s")
    except ValueError:
        return failed(what, "library does not load", f"{path.name} ends the process that loads it", again)
    if said := answer.get("error"):
        return failed(what, "library does not load", f"{path.name} does not load: {said}", _cure(said, path))
    if kernel_abi is not None and answer.get("abi") != kernel_abi:
        text = f"{path.name} has the kernel ABI {answer.get('abi', 'unknown')}, and the engine needs {kernel_abi}"
        return failed(what, "kernel ABI", text, again)
    level = f", at x86-64-v{answer['level']} on this CPU" if "level" in answer else ""
    return fine(what, f"{path.name} loads; kernel ABI {answer.get('abi', 'unknown')}{level}")


def _cure(error: str, path: Path) -> str:
    """For what the dynamic loader says: `libx.so.1: cannot open shared object file: No such file or directory`."""
    missing, found, _ = error.partition(": cannot open shared object file")
    if found and missing != str(path):
        tool = "`ldd` names all that it needs" if shutil.which("ldd") else "it is in no folder of the loader's"
        return f"install {missing}, or put its folder into LD_LIBRARY_PATH; {tool}"
    if "GLIBC" in error:
        return "it was built on a newer system; build the engine here with `make engine`"
    return "make it again with `make plugins`, and build the engine again with `make engine`"
