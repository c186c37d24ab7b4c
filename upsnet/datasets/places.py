"""Where the photo and the PNG of each image lie: files in two folders, or pieces of shards. One interface for both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from upsnet import storage
from upsnet.datasets.findings import Finding
from upsnet.datasets.listing import Listing
from upsnet.datasets.progress import progress_bar
from upsnet.datasets.shard_cache import Kept, ShardCache
from upsnet.datasets.shard_index import CURE, PNG, Shard, key_of, photo_member, read_index
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError, ServerError
from upsnet.files import parse_json, read_json, sha256
from upsnet.storage import Stored

PIECE = 1 << 24  # bytes that are read at once
File = Path | Stored  # a photo, or a PNG of segments
Absent = Callable[[int, str, str], Iterator[Finding]]  # of an image's id and the names of its photo and PNG


class FolderFiles:
    def __init__(self, split: Split) -> None:
        self.split = split

    def photo(self, image_id: int, name: str) -> Path:
        return self.split.images / name

    def png(self, image_id: int, name: str) -> Path:
        return self.split.segments / name

    def read_json(self) -> Any:
        return read_json(self.split.json_file)

    def digest(self) -> str:
        """Of what the data set is, as far as it can be had without reading every file."""
        return sha256(self.split.json_file)

    def faults(self) -> Iterator[Finding]:
        """Of the whole."""
        return iter(())

    def absences(self) -> Absent:
        """A function: the findings about files of an image that are not there. It lists each folder once."""
        photos, pngs = Listing(self.split.images), Listing(self.split.segments)

        def absent(image_id: int, photo: str, png: str) -> Iterator[Finding]:
            for kind, listing, what, path in (
                ("photo-missing", photos, "photo", photo),
                ("png-missing", pngs, "PNG", png),
            ):
                if path not in listing:
                    place = (self.split.images if listing is photos else self.split.segments) / path
                    yield Finding(kind, f"image {image_id}: its {what} {place} is missing{listing.hint(path)}")

        return absent


class ShardFiles:
    """Columns of numbers, sorted by image id; 118 000 images of COCO take 6 MB, which forked workers share."""

    def __init__(self, split: ShardSplit) -> None:
        """InputError where there is no index, or one that was changed."""
        self.split = split
        self._cache = ShardCache(split.cache.absolute(), round(split.cache_gb * 1e9)) if split.cache else None
        self.index, self._digest = read_index(split.shards)
        self.places = [storage.join(os.path.dirname(split.shards), shard.name) for shard in self.index.shards]
        columns = self.index.images
        ids = np.array(columns.image_id, np.int64)
        order = np.argsort(ids)
        self._ids, self._shard = ids[order], np.array(columns.shard, np.int64)[order]
        self._photos = np.array([columns.photo, columns.photo_size], np.int64)[:, order]
        self._pngs = np.array([columns.png, columns.png_size], np.int64)[:, order]
        self.index = self.index.model_copy(update={"images": None})  # as Python's numbers they take eight times as much

    def __contains__(self, image_id: int) -> bool:
        return self._row(image_id) is not None

    def photo(self, image_id: int, name: str) -> Stored:
        """One of no bytes where the shards have no such image."""
        return self._stored(self._photos, image_id, photo_member(image_id, name))

    def png(self, image_id: int, name: str) -> Stored:
        return self._stored(self._pngs, image_id, f"{key_of(image_id)}{PNG}")

    def read_json(self) -> Any:
        place = self.split.json_file
        content = storage.read(place)
        if hashlib.sha256(content).hexdigest() != self.index.json_sha256:
            raise InputError(f"{place}: not the JSON that the shards of {self.split.shards} were made of; {CURE}")
        return parse_json(content, place)

    def digest(self) -> str:
        """The index has the digests of the JSON and of each shard."""
        return self._digest

    def faults(self) -> Iterator[Finding]:
        """Shards that are not there or were cut: one listing."""
        for shard, place, size in self._found():
            if size is None:
                yield Finding("shard", f"{place}: no such shard; bring it back, or {CURE}")
            elif size != shard.size:
                yield Finding("shard", f"{place}: {size} bytes, not {shard.size}: it was cut or changed; {CURE}")

    def changes(self, progress: bool = True) -> Iterator[Finding]:
        """Shards of the right size that cannot be read, or of which a byte is another than when they were written: all
        are read. `faults` are not said again. ServerError where the bucket is away."""
        whole = [(shard, place) for shard, place, size in self._found() if size == shard.size]
        total = sum(shard.size for shard, _ in whole)
        with progress_bar(total=total, title=f"{self.split.name} shards", unit="B", shown=progress) as bar:
            for shard, place in whole:
                found = hashlib.sha256()
                try:
                    for start in range(0, shard.size, PIECE):
                        piece = storage.read(place, start, min(PIECE, shard.size - start))
                        found.update(piece)
                        bar.update(len(piece))
                except ServerError:
                    raise
                except InputError as error:
                    yield Finding("shard", str(error))
                else:
                    if found.hexdigest() != shard.sha256:
                        text = f"{place}: its bytes were changed after it was written (SHA-256)"
                        yield Finding("shard", f"{text}; {CURE}")

    def _found(self) -> Iterator[tuple[Shard, str, int | None]]:
        """Each shard, its place and its size there; None: it is not there."""
        found = storage.sizes(os.path.dirname(self.split.shards) or ".")
        for shard, place in zip(self.index.shards, self.places, strict=True):
            yield shard, place, found.get(shard.name)

    def absences(self) -> Absent:
        def absent(image_id: int, photo: str, png: str) -> Iterator[Finding]:
            if image_id not in self:
                where = f"image {image_id}: its photo {photo} is in no shard of {self.split.shards}"
                yield Finding("photo-missing", f"{where}; {CURE}")

        return absent

    def _row(self, image_id: int) -> int | None:
        row = int(np.searchsorted(self._ids, image_id))
        return row if row < len(self._ids) and self._ids[row] == image_id else None

    def _stored(self, columns: np.ndarray, image_id: int, name: str) -> Stored:
        row = self._row(image_id)
        if row is None:
            return Stored(self.split.shards, 0, 0, name)
        start, size = columns[:, row].tolist()
        number = self._shard[row]
        if self._cache:
            return Kept(self.places[number], start, size, name, cache=self._cache, shard=self.index.shards[number])
        return Stored(self.places[number], start, size, name)


Files = FolderFiles | ShardFiles


def open_files(split: Split | ShardSplit) -> Files:
    """InputError for shards without a sound index. Of folders nothing is looked at yet."""
    return ShardFiles(split) if isinstance(split, ShardSplit) else FolderFiles(split)


def together(photo: File | str, png: File | str) -> tuple[File | str, File | str]:
    """Both as they are, or, of a shard, with their content, which one reading brings. InputError as `storage.read`."""
    if isinstance(photo, Stored) and isinstance(png, Stored):
        return storage.read_together(photo, png)
    return photo, png


def read_file(file: File | str) -> bytes:
    """Of a photo, a PNG or a JSON. InputError as `storage.read`."""
    return file.read() if isinstance(file, Stored) else storage.read(str(file))


def is_there(file: File | str) -> bool:
    if isinstance(file, Stored):
        return file.size > 0 and storage.exists(file.place)
    return os.path.isfile(file)
