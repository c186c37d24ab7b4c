"""TensorRT's timing cache: what a build measured of kernels, kept for the next."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upsnet.device import gpu_names
from upsnet.errors import InputError
from upsnet.files import user_cache, write_bytes, writing
from upsnet.tensorrt.api import Api


def usual_file(api: Api) -> Path | None:
    """One for each version and GPU, in the user's cache; None where there is no home."""
    if (folder := user_cache()) is None:
        return None
    gpu = re.sub(r"\W+", "-", next(iter(gpu_names()), "gpu"))
    return folder / f"timing-{api.name}-{api.version}-{gpu}.cache"


class TimingCache:
    """The cache of one build, and the file that it is kept in. `notes`: what its maker should know."""

    def __init__(self, api: Api, config: Any, file: Path | None) -> None:
        """`config`: of the builder. A file that is of another version, another GPU or damaged is not used, and a note
        says so; it is written anew."""
        self._config, self._file = config, file
        self.notes: list[str] = []
        content = _read(file)
        self._cache = config.create_timing_cache(content)
        if self._cache is None or not config.set_timing_cache(self._cache, False):
            self.notes.append(
                f"{file}: no timing cache of {api.name} {api.version} on this GPU; it is not used, and written anew"
            )
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    @classmethod
    def of(cls, api: Api, config: Any, file: Path | None) -> TimingCache:
        return cls(api, config, file or usual_file(api))

    def keep(self) -> None:
        """Into the file, with what other builds have put there meanwhile. A file that cannot be written is a note: the
        engine does not depend on it."""
        if self._file is None:
            return
        try:
            with writing(self._file):
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(self._file.with_name(self._file.name + ".lock")):
                others = self._config.create_timing_cache(_read(self._file))
                if others is not None:
                    self._cache.combine(others, False)  # of another version: skipped
                write_bytes(self._file, bytes(memoryview(self._cache.serialize())))
        except InputError as error:
            self.notes.append(f"the timing cache is not kept: {error}")


def _read(file: Path | None) -> bytes:
    if file is None or not file.is_file():
        return b""
    with writing(file):
        return file.read_bytes()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time is inside. The lock ends with the process, however that ends."""
    import fcntl

    with writing(lock.parent), lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
