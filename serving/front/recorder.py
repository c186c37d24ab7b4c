"""Keeps some of the photos that callers send, as they came: a candidate is judged on them (docs/rollouts.md).

Off by default: they are somebody's photos. The folder and its files are for the service's user alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from prometheus_client import CollectorRegistry, Counter

from serving.front.requests import REGION, Asked, elements
from serving.front.sampling import message_of
from serving.record import Record
from upsnet.contract import PHOTO, PHOTO_MODEL
from upsnet.errors import InputError, first_line
from upsnet.sources import PHOTO_SUFFIXES

PHOTOS = 500
MOST_BYTES = 2 << 30  # of all photos together
SUFFIXES = {"MPO": ".jpg", "JPEG": ".jpg", "JPEG2000": ".jp2"}  # of Pillow's formats that are not called so

logger = logging.getLogger(__name__)


class RecorderSettings(NamedTuple):
    """Of a recorder."""

    folder: Path
    share: float  # of the requests
    photos: int = PHOTOS  # that are kept, the newest


class Recorder:
    """A `Sampler` of photos. One request at a time, in a thread."""

    def __init__(
        self, settings: RecorderSettings, registry: CollectorRegistry, chance: Callable[[], float] = random.random
    ) -> None:
        """InputError where others may look into the folder, or where it cannot be made."""
        self.folder, self._share, self._most, self._chance = private_folder(settings.folder), *settings[1:], chance
        kept = [path for path in self.folder.iterdir() if path.suffix in PHOTO_SUFFIXES and path.is_file()]
        kept.sort(key=lambda path: path.stat().st_mtime)
        self._kept = {path.name: path.stat().st_size for path in kept}  # oldest first
        self._recording: asyncio.Task[None] | None = None
        self._said = False
        self._photos = Counter("upsnet_recorded_photos", "Photos of callers that were kept.", registry=registry)

    async def start(self) -> None:
        for rubbish in self.folder.glob(".photo-*"):  # of a service that was killed
            rubbish.unlink(missing_ok=True)

    async def stop(self) -> None:
        self._share = 0.0
        if self._recording is not None:
            await self._recording

    def answered(self, version: int, record: Record, asked: Asked, body: bytes, header_length: int | None) -> None:
        if record.model == PHOTO_MODEL and self._recording is None and self._chance() < self._share:
            rest = record.protocol == "http"
            self._recording = asyncio.create_task(self._record(record.model, body, rest, header_length))

    async def _record(self, model: str, body: bytes, rest: bool, header_length: int | None) -> None:
        try:
            self._photos.inc(await asyncio.to_thread(self._keep, model, body, rest, header_length))
            self._said = False
        except Exception as error:  # a full disk, for one
            if not self._said:
                logger.error("photos cannot be kept in %s: %s", self.folder, first_line(error))
            self._said = True
        finally:
            self._recording = None

    def _keep(self, model: str, body: bytes, rest: bool, header_length: int | None) -> int:
        """How many photos are new."""
        new = 0
        for photo in _photos(model, body, rest, header_length):
            name = f"{hashlib.sha256(photo).hexdigest()[:24]}{_suffix(photo)}"
            if name not in self._kept and Path(name).suffix in PHOTO_SUFFIXES and len(photo) <= MOST_BYTES:
                self._write(name, photo)
                new += 1
        return new

    def _write(self, name: str, photo: memoryview) -> None:
        while self._kept and (len(self._kept) >= self._most or sum(self._kept.values()) + len(photo) > MOST_BYTES):
            oldest = next(iter(self._kept))
            (self.folder / oldest).unlink(missing_ok=True)
            del self._kept[oldest]
        fresh = self.folder / f".photo-{name}"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(photo)
            os.replace(fresh, self.folder / name)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        self._kept[name] = len(photo)


def private_folder(folder: Path) -> Path:
    """The folder, made where it is not there. InputError where it is not this user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise InputError(f"--record {folder}: {error.strerror}; give another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--record {folder}: this user cannot write there; give another folder")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(
            f"--record {folder}: photos of callers are kept there, and others could read them; `chmod 700` it, or give "
            "a folder of your own"
        )
    return folder


def _photos(model: str, body: bytes, rest: bool, header_length: int | None) -> Iterator[memoryview]:
    """Those that are in the message: none of shared memory."""
    request, data = message_of(model, body, rest, header_length)
    for tensor, content in zip(request.inputs, data, strict=True):
        if tensor.name == PHOTO and REGION not in tensor.parameters:
            if content is not None:
                yield from elements(content)
            yield from (memoryview(each) for each in tensor.contents.bytes_contents)


def _suffix(photo: memoryview) -> str:
    """By the format that Pillow sees; empty where it sees none."""
    with suppress(Exception), Image.open(io.BytesIO(photo)) as image:
        return SUFFIXES.get(image.format or "", f".{(image.format or '').lower()}")
    return ""
