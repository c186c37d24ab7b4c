"""What a file is, whatever its name says: by its first bytes, of which a few kilobytes are read."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from upsnet.engines.manifest import Backend
from upsnet.errors import InputError

HEAD = 4096  # bytes that are looked at
LARGEST_JSON = 64 * 2**20  # bytes
TENSORRT, RTX = b"ftrt", b"vtrt"  # a plan's first bytes
# A plan's version: four bytes from here. Of TensorRT's as trtexec's source (--getPlanVersionOnly) has it, of RTX's as
# the builder of 1.7 writes it, whose runtime compares the first three of them.
VERSION = 24
SIZE, CAPABILITIES = 16, 32  # of an RTX plan: its bytes, and a bit for each compute capability
RTX_CAPABILITIES = ("75", "80", "86", "89", "120", "121")  # from bit 0 on, as its builder writes them
MACHINES = {62: "x86_64", 183: "aarch64"}  # of ELF

EXPORT = "export it with `upsnet export`, then build its engine with `make engine`"
BUILD = "build an engine of it with `make engine`"


class Kind(NamedTuple):
    """title: what the file is, for people; backend: whose engine it is; cure: what to do with what is no engine."""

    title: str
    backend: Backend | None = None
    cure: str = ""
    version: str = ""  # of the package that built a plan
    bytes: int | None = None  # that an RTX plan says it has
    compute_capabilities: tuple[str, ...] = ()


def regular_file(path: Path) -> os.stat_result:
    """InputError that says what it is instead, where it is no file that can be read to its end."""
    try:
        found = path.stat()
    except FileNotFoundError:
        link = f" (a link to {path.readlink()}, which is not there)" if path.is_symlink() else ""
        raise InputError(f"no such file{link}") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for test, words in kinds.items() if test(found.st_mode)), "a device")
        raise InputError(f"{kind}, not a file")
    return found


def check_json(path: Path) -> None:
    """InputError, without its name, for what is no file that a JSON of ours could be in: a pipe, or a large one."""
    if (size := regular_file(path).st_size) > LARGEST_JSON:
        raise InputError(f"no JSON of this project: {size} bytes")


def read_head(path: Path, count: int = HEAD) -> bytes:
    """The first bytes of a regular file. InputError, without the file's name, where it cannot be read."""
    regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None


def identify(path: Path) -> Kind:
    """What the file is. InputError, without its name, where it is no file or cannot be read."""
    head = read_head(path)
    if not head:
        return Kind("an empty file", cure="copy it again: whatever wrote it did not finish")
    if head[:4] in (TENSORRT, RTX):
        return _plan(head)
    if head.startswith(b"version https://git-lfs"):
        return Kind("a Git LFS pointer, a note of the file that Git has not fetched", cure="`git lfs pull`")
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72":
        return Kind("an ONNX file", "onnxruntime")  # ir_version, then another field of a model
    return _other(path, head)


def _plan(head: bytes) -> Kind:
    name, backend = ("TensorRT", "tensorrt") if head[:4] == TENSORRT else ("TensorRT-RTX", "tensorrt-rtx")
    if len(head) < VERSION + 4:
        return Kind(f"the first {len(head)} bytes of a {name} plan", cure="copy it again, or " + BUILD)
    version = ".".join(map(str, head[VERSION : VERSION + 4])) if head[4:8] == bytes(4) else ""
    plan = Kind(f"a {name} plan", backend, version=version)  # type: ignore[arg-type]
    if head[:4] == TENSORRT or len(head) < CAPABILITIES + 8:
        return plan
    (size,), (bits,) = struct.unpack_from("<Q", head, SIZE), struct.unpack_from("<Q", head, CAPABILITIES)
    capable = tuple(each for bit, each in enumerate(RTX_CAPABILITIES) if bits >> bit & 1)
    return plan._replace(bytes=size, compute_capabilities=capable)


def _archive(path: Path) -> Kind:
    """A ZIP file: PyTorch saves programs and checkpoints so."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile, NotImplementedError):
        return Kind("a ZIP archive that is cut off or damaged", cure="copy it again, or build it again")
    if any(name.startswith(("models/", "serialized_exported_program")) for name in names):
        return Kind("a program that torch.export saved", "torch-tensorrt")
    if any(name.startswith("code/") for name in names):
        return Kind("a TorchScript program", cure=f"it is none of this project's files; {EXPORT}, from its checkpoint")
    if "data.pkl" in names:
        return Kind("a PyTorch checkpoint", cure="`upsnet import` reads the original UPSNet's")
    return Kind("a ZIP archive", cure="unpack it, and name the engine in it")


def _other(path: Path, head: bytes) -> Kind:
    if head.startswith(b"\x7fELF"):
        machine = elf_machine(head) or "an unknown processor"
        return Kind(f"a shared library for {machine}", cure="name the engine beside it")
    if len(head) > 12 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return Kind("a checkpoint (safetensors)", cure=EXPORT)
    if len(head) > 8 and head[4:5] == b"{" and b'"' in head[5:9]:
        cure = "TensorRT's plan begins after that header; " + BUILD
        return Kind("an engine of Ultralytics, with a header of its own before the plan", cure=cure)
    starts = {
        b"\x80": Kind("a pickle, as old PyTorch checkpoints are", cure="`upsnet import` reads the original UPSNet's"),
        b"\x1f\x8b": Kind("a gzip archive", cure="unpack it, and name the engine in it"),
        b"\x28\xb5\x2f\xfd": Kind("a zstd archive", cure="unpack it, and name the engine in it"),
        b"\xff\xd8\xff": Kind("a photo (JPEG)", cure="`upsnet predict` takes photos"),
        b"\x89PNG": Kind("a photo (PNG)", cure="`upsnet predict` takes photos"),
    }
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    if not head.strip(b"\0"):
        return Kind("a file that begins with zeros", cure="copy it again: whatever wrote it did not finish")
    return _text(path, head)


def _text(path: Path, head: bytes) -> Kind:
    start = head.lstrip().lower()
    if start.startswith((b"{", b"[")):
        if path.name == "engine.json":
            return Kind("what `make engine` found (JSON)", cure="name its folder")
        engine = path.with_suffix("")
        described = path.suffix == ".json" and engine.suffix and engine.is_file()
        return Kind("a JSON file", cure=f"name the engine that it describes, {engine}" if described else BUILD)
    if start.startswith((b"<!doctype", b"<html")):
        return Kind(
            "a web page", cure="download it again: the server sent a page, as for a login, in place of the file"
        )
    try:
        text = head[:-4].decode() if len(head) == HEAD else head.decode()  # its end may lie within a character
    except UnicodeDecodeError:
        text = "\0"
    known = "a text file" if "\0" not in text else "no file of a kind that is known here"
    return Kind(known, cure=f"an engine is made by `make engine`; if this was one, it is damaged: {BUILD}")


def elf_machine(head: bytes) -> str:
    """The processor that a shared library is for; "" for what is no library, or for another processor."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return ""
    return MACHINES.get(int.from_bytes(head[18:20], "little" if head[5:6] == b"\x01" else "big"), "")
