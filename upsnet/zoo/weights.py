"""The files of published networks in a folder of this machine, each checked against what is known of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from upsnet.errors import InputError
from upsnet.files import WriteError, user_cache, write_text, writing
from upsnet.zoo.networks import Network

CACHE_VARIABLE = "UPSNET_CACHE"
BLOCK = 1 << 20


class WrongFile(InputError):
    """A file that is not what it should be."""


class Sums(NamedTuple):
    """Of a file's bytes, hexadecimal."""

    md5: str
    sha256: str


class Weights(NamedTuple):
    """A file that is here and was checked."""

    file: Path
    sums: Sums


def cache_folder(given: Path | None = None) -> Path:
    """`given`, else $UPSNET_CACHE, else weights/ in the user's cache. InputError where there is no home."""
    if given is not None:
        return given
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    cache = user_cache()
    if cache is None:
        raise InputError(f"there is no home folder to keep weights in: give --cache FOLDER, or set {CACHE_VARIABLE}")
    return cache / "weights"


def place_of(name: str, network: Network, cache: Path) -> Path:
    """Where the file of a network lies, or belongs."""
    return cache / name / network.file


def cached(name: str, network: Network, cache: Path, fetch: Callable[[Path], None]) -> Weights:
    """The network's file, which `fetch` puts to its place where it is not there yet. Checked each time.

    Its SHA-256 is kept beside it (the lines of sha256sum), and compared from then on. WrongFile for one that is not
    what it should be: it is set aside, and not used.
    """
    place = place_of(name, network, cache)
    if not place.is_file():
        fetch(place)
    try:
        sums = checked(name, network, place)
        _compare_with_record(place, sums)
    except WrongFile as error:
        aside = place.with_name(f"{place.name}.wrong")
        with writing(aside):
            os.replace(place, aside)
        raise WrongFile(f"{error}; it is set aside as {aside} and not used: fetch it again") from None
    return Weights(place, sums)


def checked(name: str, network: Network, file: Path) -> Sums:
    """WrongFile where the file's MD5 does not begin as the table says."""
    sums = sums_of(file)
    if not sums.md5.startswith(network.md5):
        got = sums.md5[: len(network.md5)]
        raise WrongFile(
            f"{file}: its MD5 begins with {got}, that of {name} with {network.md5}: damaged, or another file"
        )
    return sums


def sums_of(file: Path) -> Sums:
    """InputError where it cannot be read."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while block := stream.read(BLOCK):
                md5.update(block)
                sha256.update(block)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return Sums(md5.hexdigest(), sha256.hexdigest())


def _compare_with_record(file: Path, sums: Sums) -> None:
    record = file.with_name(f"{file.name}.sha256")
    before = ""
    with suppress(OSError, ValueError):  # ValueError: not UTF-8
        before = record.read_text().partition(" ")[0]
    if not before:
        with suppress(WriteError):  # a cache that others fill; the run has the sum, too
            write_text(record, f"{sums.sha256}  {file.name}\n")
    elif before != sums.sha256:
        raise WrongFile(
            f"{file}: its SHA-256 is {sums.sha256}, and was {before} when it came ({record.name}): it has changed"
        )
