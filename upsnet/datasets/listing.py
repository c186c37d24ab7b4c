"""The names of the files below a folder, and why one that is not there seems to be."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from upsnet.errors import InputError

# What two names differ in that are equal after this.
WAYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (
        "the Unicode normal form of its name (NFC or NFD, as macOS unpacks files): rename one of the two",
        lambda name: unicodedata.normalize("NFC", name),
    ),
    ("upper and lower case", lambda name: unicodedata.normalize("NFC", name).casefold()),
    ("its suffix", lambda name: os.path.splitext(name)[0]),
)


class Listing:
    """The files below a folder. Each folder is listed once: asking for every file costs ten times as much."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}
        self._nearly: dict[object, dict[str, str]] = {}  # a folder, ...: its names without a difference -> as they are

    def __contains__(self, name: str) -> bool:
        below, base = os.path.split(name)
        return base in self.names(below)

    def names(self, below: str) -> set[str]:
        """Of the files in a folder; none where there is no such folder."""
        if below not in self._names:
            self._names[below] = self._list(self._root / below)
        return self._names[below]

    def hint(self, name: str, suffixes: tuple[str, ...] = ("",)) -> str:
        """ "; ..." with a file that is there under nearly this name, which is not, and the cure. Or nothing.

        suffixes: what such a file's name may end in, in small letters.
        """
        forward = name.replace("\\", "/")
        if forward != name:
            is_there = "is there" if forward in self else "is what other systems understand"
            return f"; its name has backslashes, as Windows writes paths: '{forward}' {is_there}"
        for below in {unicodedata.normalize(form, os.path.dirname(name)) for form in ("NFC", "NFD")}:
            for difference, key in WAYS:
                place = (below, difference, suffixes)
                if place not in self._nearly:  # once, as where one file is missing the others often are, too
                    there = (other for other in self.names(below) if other.lower().endswith(suffixes))
                    self._nearly[place] = {key(other): other for other in sorted(there, reverse=True)}
                found = self._nearly[place].get(key(os.path.basename(name)))
                if found is not None:
                    return f"; '{os.path.join(below, found)}' is there, which differs in {difference}"
        return ""

    @staticmethod
    def _list(folder: Path) -> set[str]:
        try:
            files = os.scandir(folder) if folder.is_dir() else ()
            return {entry.name for entry in files if os.path.isfile(entry.path)}  # entry's own raises for endless links
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
