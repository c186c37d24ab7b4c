"""The photos that labels speak of: by the name that the labels have, or nearly."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from upsnet.datasets.listing import Listing
from upsnet.datasets.maker import REPORT
from upsnet.errors import InputError
from upsnet.sources import PHOTO_SUFFIXES


class PhotoFolder:
    """The photos in a folder and below. InputError where there is no such folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; it should hold the photos")
        self.folder = folder
        self._listing = Listing(folder)
        self._by_base: dict[str, list[str]] | None = None  # base name -> names below the folder
        self.elsewhere: list[tuple[str, str]] = []  # names in the labels, and in the folder, that `find` took for one

    def __contains__(self, name: str) -> bool:
        """Whether a file lies there, below the folder, under this very name."""
        return _is_inside(name) and name in self._listing

    def names(self) -> list[str]:
        """Of all photos, sorted; hidden files and folders do not count."""
        return sorted(name for names in self._bases().values() for name in names)

    def find(self, name: str) -> str:
        """The name below the folder of the photo that labels call `name`: this very name, with backslashes or slashes;
        else the one photo with its base name, of which `remarks` tells. Folders in the name count as far as the photo's
        has any (`x/a.jpg` is `a.jpg` or `all/x/a.jpg`, never `y/a.jpg`), but for those that lead elsewhere, as on the
        machine of whoever drew them (`C:/me/x/a.jpg`, `../x/a.jpg`).

        InputError: there is none, or several are called so.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        if name and str(wanted) in self:
            return str(wanted)
        same = self._bases().get(wanted.name, []) if name else []
        found = [each for each in same if _agree(wanted, PurePosixPath(each))]
        if len(found) == 1:
            self.elsewhere.append((name, found[0]))
            return found[0]
        if found:
            raise InputError(f"several photos in {self.folder} are called {wanted.name}: {found[0]}, {found[1]}")
        hint = self._listing.hint(str(wanted), PHOTO_SUFFIXES) if name and _is_inside(str(wanted)) else ""
        other = f"; '{same[0]}' is there, in another folder" if same and not hint else ""
        raise InputError(f"its photo {name!r} is not in {self.folder}{hint or other}")

    def remarks(self) -> list[str]:
        """What is to be said of `elsewhere`."""
        if not self.elsewhere:
            return []
        name, taken = self.elsewhere[0]
        return [f"{len(self.elsewhere):,} photos lie in other folders than the labels say, as {taken} for {name!r}"]

    def path(self, name: str) -> Path:
        return self.folder / name

    def _bases(self) -> dict[str, list[str]]:
        if self._by_base is None:
            self._by_base = defaultdict(list)
            for name in files_below(self.folder, PHOTO_SUFFIXES):
                self._by_base[PurePosixPath(name).name].append(name)
        return self._by_base


def _agree(wanted: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether the shorter path is the end of the longer one, or `wanted` leads elsewhere."""
    shared = min(len(wanted.parts), len(other.parts))
    leads_elsewhere = not _is_inside(str(wanted)) or wanted.parts[0].endswith(":")
    return leads_elsewhere or wanted.parts[-shared:] == other.parts[-shared:]


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names of a folder's files, and then of those below. Hidden ones do not count, nor do the photos and PNGs of an
    earlier conversion; links to folders are followed, but not upwards."""
    for place, folders, names in os.walk(folder, followlinks=True):
        made = {name.removesuffix(REPORT) for name in names if name.endswith(REPORT)}
        made |= {f"panoptic_{name}" for name in made}
        folders[:] = sorted(
            each for each in folders if each not in made and not each.startswith(".") and not _leads_up(place, each)
        )
        below = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.normpath(os.path.join(below, name))


def _leads_up(place: str, name: str) -> bool:
    """Whether a folder is a link to one above it, which would be walked for ever."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))


def _is_inside(name: str) -> bool:
    """Whether a name leads to no other place than the folder and what is below."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
