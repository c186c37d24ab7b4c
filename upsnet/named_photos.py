"""Photos, unread, with the names that their predictions get: one, a list, a folder, a video's frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.photos import Photo, photo_path, read_photo
from upsnet.sources import Source, find_sources, is_video
from upsnet.storage import Stored
from upsnet.video import Video


class NamedPhoto(NamedTuple):
    """A photo, and PanopticPrediction's `source` and `name` for it."""

    photo: Photo | InputError  # an error stands where there is no photo to read; those after it may be good
    source: str
    name: str

    def read(self) -> np.ndarray:
        """uint8 H x W x 3, by `read_photo`."""
        return read_photo(self.given, self.source)

    def kept(self) -> NamedPhoto:
        """The same for later: a camera may write its next photo where this one is."""
        return self._replace(photo=self.photo.copy()) if isinstance(self.photo, np.ndarray | bytearray) else self

    @property
    def given(self) -> Photo:
        """The photo; raises the error that stands in its place."""
        if isinstance(self.photo, InputError):
            raise self.photo
        return self.photo


def one_photo(photo: Photo, stream: str) -> NamedPhoto:
    """InputError for a folder or a video; `stream` is what takes those."""
    path = photo_path(photo)
    if path and (os.path.isdir(path) or (os.path.isfile(path) and is_video(path))):
        raise InputError(f"{path}: more than one photo; iterate over {stream}({path!r})")
    return _named(photo, "photo", "photo")


def photos_of(photos: Iterable[Photo]) -> Iterator[NamedPhoto]:
    for number, photo in enumerate(photos, 1):
        yield _named(photo, f"photo {number}", f"{number:06}")


def stream_photos(source: PathLike | Iterable[Photo]) -> Iterator[NamedPhoto]:
    """Of a folder, a pattern, a video, a photo's path, or any iterable of photos. InputError for anything else."""
    if isinstance(source, str | os.PathLike):
        return _of_path(source)
    if isinstance(source, bytes | bytearray | Image.Image | np.ndarray) or not isinstance(source, Iterable):
        raise InputError("stream takes a folder, a pattern, a video or an iterable of photos; predict takes one")
    return photos_of(source)


def _named(photo: Photo, source: str, name: str) -> NamedPhoto:
    """`source` and `name` are for a photo without a path."""
    path = photo_path(photo)
    if path is None:
        return NamedPhoto(photo, source, name)
    return NamedPhoto(photo, path, Path(photo.name if isinstance(photo, Stored) else path).stem)


def _of_path(path: PathLike) -> Iterator[NamedPhoto]:
    try:
        for source in find_sources([path], urls=True):
            if source.is_video:
                yield from _frames(source)
            else:
                yield NamedPhoto(source.photo, str(source), source.name)
    except InputError as error:  # no such file, for one
        yield NamedPhoto(error, os.fspath(path), "")


def _frames(source: Source) -> Iterator[NamedPhoto]:
    try:
        with Video(source.path) as frames:
            for number, frame in enumerate(frames, 1):
                yield NamedPhoto(frame, f"{source.path}, frame {number}", f"{source.name}/{number:06}")
    except InputError as error:
        yield NamedPhoto(error, str(source.path), source.name)
