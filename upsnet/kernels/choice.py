"""Which kernels ONNX Runtime runs the operators of domain `upsnet` with: the compiled ones, or their function bodies.

An exported file holds a body in standard operators for every operator, so it runs anywhere. Where the library of
compiled kernels is registered (libupsnet_onnxruntime.so, and for a GPU libupsnet_onnxruntime_cuda.so), ONNX Runtime
takes those instead. Environment:

UPSNET_KERNELS=off    the bodies, and no word about it; `auto`, the default, is the library where it can be had
UPSNET_OPERATORS=FOLDER    takes the libraries that `make plugins` left in FOLDER; nothing is compiled
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from upsnet.device import compute_capability
from upsnet.errors import InputError
from upsnet.kernels.building import SOURCES, BuildError, find_library
from upsnet.kernels.loading import load

VARIABLE = "UPSNET_KERNELS"
CHOICES = ("auto", "off")
OFF = f"{VARIABLE}=off"
OF_UPSNET = b"\x3a\x06upsnet"  # a node's domain, as the ONNX file has it: field 7, 6 bytes
OF_FLOAT8 = b"_fp8_quantized"  # the end of a weight's name

logger = logging.getLogger("upsnet")


class Kernels(NamedTuple):
    """What a session runs the operators with. library: registered in it; None: the bodies, and `reason` says why."""

    library: Path | None
    reason: str = ""

    def __str__(self) -> str:
        return self.library.name if self.library else f"function bodies ({self.reason})"

    @property
    def is_meant(self) -> bool:
        """Whether the bodies serve because somebody chose them, or there is nothing to run."""
        return self.library is None and self.reason in (OFF, NONE.reason)

    def warn(self) -> None:
        """One line, once in a process, where the bodies serve though nobody chose them."""
        if self.library is None and not self.is_meant:
            _warn(self.reason)


NONE = Kernels(None, "the model has no operators of ours")


def wanted_kernels(kernels: str | None = None) -> str:
    """`kernels`, else what the environment says: "auto" or "off". InputError for another word."""
    word = os.environ.get(VARIABLE) or CHOICES[0] if kernels is None else kernels
    if word not in CHOICES:
        raise InputError(f"{VARIABLE if kernels is None else 'kernels'}={word}: use {' or '.join(CHOICES)}")
    return word


def find_kernels(kernels: str | None = None, gpu: int | None = None) -> Kernels:
    """The library for sessions on the CPU, or on NVIDIA GPU number `gpu`; compiled first if need be.

    kernels: "auto", "off", or None: as UPSNET_KERNELS says.
    """
    if wanted_kernels(kernels) == "off":
        return Kernels(None, OFF)
    try:
        if gpu is None:
            library = find_library("onnxruntime")
        elif architecture := compute_capability(gpu):
            library = find_library("onnxruntime_cuda", architecture)
        else:
            raise BuildError(f"the NVIDIA driver does not tell what GPU number {gpu} is")
        check(library)
    except BuildError as error:
        return Kernels(None, str(error))
    return Kernels(library)


def check(library: Path) -> None:
    """BuildError for a file that cannot be loaded, and for one of another version than this package."""
    try:
        found = load(library).upsnet_kernel_abi()
    except AttributeError:
        found = "unknown"
    if found != (needed := kernel_abi()):
        raise BuildError(
            f"{library} is of another version: its kernel ABI is {found}, and this package's {needed}; make it anew"
        )


@cache
def kernel_abi() -> int:
    """The number that a library's kernels must have (docs/plugins.md)."""
    try:
        text = (SOURCES / "common" / "kernel_abi.h").read_text()
    except OSError as error:
        raise BuildError(f"the operators' sources are not installed: {SOURCES}") from error
    return int(re.findall(r"#define UPSNET_KERNEL_ABI (\d+)", text)[0])


def has_operators(model: Path) -> bool:
    """Whether an ONNX file has nodes of domain `upsnet`."""
    return _holds(model, OF_UPSNET)


def has_float8(model: Path) -> bool:
    """Whether an ONNX file has weights of float8, as `upsnet export` names them."""
    return _holds(model, OF_FLOAT8)


def _holds(model: Path, words: bytes) -> bool:
    with model.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(words) >= 0


@cache
def _warn(reason: str) -> None:
    logger.warning(
        "the operators run from function bodies, which are slower: %s (UPSNET_KERNELS=off: so it is meant)", reason
    )
