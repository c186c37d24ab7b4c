"""Shards of a bucket on the disk of the machine that reads them: fetched once, by whichever process is first."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upsnet import storage
from upsnet.datasets.shard_index import CURE, Shard
from upsnet.errors import InputError
from upsnet.files import atomic_path, sha256, writing
from upsnet.storage import Stored

SUFFIX = ".tar"
LEFT_FREE = 1 << 30  # bytes of the disk

full: set[Path] = set()  # folders that this process saw without room
logger = logging.getLogger("upsnet")


@dataclass(frozen=True)
class ShardCache:
    """A folder with copies of shards, named by their SHA-256. Any number of processes and data sets share it.

    It grows up to `most_bytes`, and while the disk has LEFT_FREE bytes more than the next shard. Then what is in it
    stays, and other shards are read where they are: order is at random, and a shard that made room for another would be
    wanted again at once. To empty it, remove the folder.
    """

    folder: Path
    most_bytes: int

    def path(self, shard: Shard, place: str) -> Path | None:
        """The copy, fetched now where there is none. None: another process is fetching one, or there is no room.

        Raises InputError where the shard is not the one of the index, or cannot be read, and WriteError.
        """
        path = self.folder / f"{shard.sha256}{SUFFIX}"
        if path.is_file():
            return path
        if self.folder in full:
            return None
        with self._alone() as alone:
            if not alone:
                return None
            if path.is_file():
                return path
            if not self._has_room(shard.size):
                full.add(self.folder)
                logger.warning(
                    "%s: no room for more shards; those that are not in it are read where they are", self.folder
                )
                return None
            with atomic_path(path) as temporary:
                storage.download(place, temporary)
                if sha256(temporary) != shard.sha256:
                    raise InputError(f"{place}: its bytes were changed after it was written (SHA-256); {CURE}")
        return path

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Of all processes of this machine one is inside; the others are told so, and do not wait."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "a")  # noqa: SIM115
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _has_room(self, size: int) -> bool:
        """Whoever asks is alone: what a process that was killed had begun is removed."""
        used = 0
        for entry in os.scandir(self.folder):
            if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
                os.unlink(entry)
            elif entry.name.endswith(SUFFIX):
                used += entry.stat().st_size
        return used + size <= self.most_bytes and shutil.disk_usage(self.folder).free >= size + LEFT_FREE


@dataclass(frozen=True)
class Kept(Stored):
    """A piece of a shard of which a copy may be here."""

    cache: ShardCache | None = None
    shard: Shard | None = None

    def read(self) -> bytes:
        """Raises InputError as `storage.read` and `ShardCache.path`."""
        if self.content is None and self.cache and self.shard:
            copy = self.cache.path(self.shard, self.place)
            if copy:
                return storage.read(os.fspath(copy), self.start, self.size)
        return super().read()
