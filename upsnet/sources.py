"""Which photos and videos a path, a folder or a pattern stands for."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.storage import is_url, shown
from upsnet.video import VIDEO_SUFFIXES

# In a folder, what has one of these names is a photo; a file that is given by its own name may have any.
PHOTO_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

logger = logging.getLogger("upsnet")


class Source(NamedTuple):
    """A photo or a video."""

    path: Path
    name: str  # with the folders below the one that was given: what is made of it is named after it
    is_video: bool
    in_folder: bool = False  # found there, rather than given
    url: str = ""  # of one that is behind a URL; `path` is then no path

    @property
    def photo(self) -> Path | str:
        """What `read_photo` takes."""
        return self.url or self.path

    def __str__(self) -> str:
        """For messages."""
        return shown(self.url) if self.url else str(self.path)


def find_sources(
    given: Iterable[PathLike], without: Path | None = None, warn: bool = True, urls: bool = False
) -> Iterator[Source]:
    """Files as they are; of folders, the photos and videos in them and below; of patterns, the files that match.

    In the order given; in a folder by name, its own files before its subfolders'. Names are without suffix, but for
    two photos, or two videos, of a folder that differ in nothing else. Hidden files (.x) are passed over,
    other files too, with one warning a folder (`warn`) of the logger `upsnet`. `without`: a folder whose content is
    left out. urls: photos behind URLs are taken, one by one; else they are refused. Raises InputError for what is not
    there, a pattern without a match and a folder without photo and video.
    """
    for path in expand(given):
        if isinstance(path, str):
            yield _behind_url(path, urls)
        elif os.path.isdir(path):
            yield from _in_folder(path, without and without.resolve(), warn)
        elif os.path.exists(path):
            yield Source(path, path.stem, is_video(path))
        else:
            raise InputError(f"{path}: no such file")


def _behind_url(url: str, taken: bool) -> Source:
    name = PurePosixPath(shown(url)).name
    if not taken:
        raise InputError(f"{shown(url)}: behind a URL; give photos of this machine")
    below = shown(url).partition("://")[2].partition("/")[2]
    if not below or url.endswith("/") or "*" in name:
        raise InputError(f"{shown(url)}: behind a URL photos are named one by one; list them for --photos-from")
    if is_video(name):
        raise InputError(f"{shown(url)}: a video behind a URL is not read; fetch it, and give its path")
    return Source(Path(url), PurePosixPath(name).stem, False, url=url)


def expand(given: Iterable[PathLike]) -> Iterator[Path | str]:
    """Patterns (`*`, `?`, `[...]`, and `**` for any folders) that are no file's own name, as a shell expands them.
    URLs are as they are, and the only texts."""
    for text in (os.fspath(path) for path in given):
        if not text:
            raise InputError("an empty name: give a photo, a video, a folder or a pattern")
        if is_url(text):
            yield text
            continue
        if os.path.lexists(text) or not glob.has_magic(text):
            yield Path(text)
            continue
        found = sorted(glob.glob(text, recursive=True))
        if not found:
            raise InputError(f"{text}: no file matches")
        yield from map(Path, found)


def is_video(path: PathLike) -> bool:
    """By its suffix."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def _in_folder(folder: Path, without: Path | None, warn: bool) -> Iterator[Source]:
    if folder.resolve() == without:
        raise InputError(f"{folder}: both the folder of the photos and the output's; choose another for the output")
    found, others = 0, 0
    example = ""
    for path, shared in _walk(folder, without):
        if path.name.lower().endswith((*PHOTO_SUFFIXES, *VIDEO_SUFFIXES)):
            found += 1
            name = PurePosixPath(path.relative_to(folder))
            yield Source(path, str(name if shared else name.with_suffix("")), is_video(path), in_folder=True)
        else:
            others += 1
            example = example or path.name
    if not found:
        kinds = f"; what it holds is no photo by its name ({example})" if others else ""
        raise InputError(f"{folder}: a folder without photos{kinds}")
    if others and warn:
        more = f" and {others - 1} more" if others > 1 else ""
        logger.warning("%s: left out what is neither photo nor video by its name: %s%s", folder, example, more)


def _walk(folder: Path, without: Path | None) -> Iterator[tuple[Path, bool]]:
    """Every file below, and whether another photo (of a video: another video) of its folder has its name but for the
    suffix. The names of one folder are in memory at a time. A link to a folder above is not followed."""
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.is_dir(), entry.name) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    stems = Counter(map(_stem, (name for is_folder, name in names if not is_folder)))
    for is_folder, name in names:
        path = folder / name
        if not is_folder:
            yield path, stems[_stem(name)] > 1
        elif (real := path.resolve()) != without and not folder.resolve().is_relative_to(real):
            yield from _walk(path, without)


def _stem(name: str) -> tuple[str, str]:
    """A file's name without suffix, and what it is: files that share both would be written to one place."""
    lower = name.lower()
    kind = "photo" if lower.endswith(PHOTO_SUFFIXES) else "video" if lower.endswith(VIDEO_SUFFIXES) else lower
    return os.path.splitext(name)[0], kind
