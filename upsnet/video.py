"""Videos by PyAV (the extra `video`): one frame in memory at a time, and the size of a video does not matter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from upsnet import DISTRIBUTION
from upsnet.errors import InputError
from upsnet.files import PathLike, WriteError
from upsnet.photos import MAX_PIXELS

logger = logging.getLogger("upsnet")

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"),
)


class Video:
    """The frames of a video file, in order, as uint8 H x W x 3 RGB arrays, upright (its rotation is applied).

        with Video("clip.mp4") as video:
            for frame in video: ...

    They are read once. Of a file that ends early the logger `upsnet` warns; the frames that are there are good.
    InputError, in one line: no such file, not a video, damaged (with the number of the frame), or no PyAV.
    """

    def __init__(self, path: PathLike) -> None:
        self.path, self._count = Path(path), 0
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        self._av = _load_av(self.path)
        with self._one_line_errors():
            self._container = self._av.open(str(self.path))
            if not self._container.streams.video:
                self.close()
                raise InputError(f"{path}: holds no video")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"

    @property
    def rate(self) -> Fraction:
        """Frames a second, on average."""
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)

    @property
    def length(self) -> int | None:
        """About how many frames there are, if the file says so."""
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = self._container.duration and self._container.duration / self._av.time_base
        return round(seconds * self.rate) if seconds else None

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._one_line_errors():
            for frame in self._container.decode(self._stream):
                if frame.width * frame.height > MAX_PIXELS:
                    size = f"{frame.width} x {frame.height}"
                    raise InputError(f"{self.path}: {size} pixels is over the limit of {MAX_PIXELS}; make it smaller")
                self._count += 1
                image = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
        if not self._count:
            raise InputError(f"{self.path}: not a readable video: it has no frame")
        if self.length and self._count < 0.95 * self.length:
            logger.warning("%s: damaged or cut: only %d of %d frames are there", self.path, self._count, self.length)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            where = f" after frame {self._count}" if self._count else ""
            raise InputError(f"{self.path}: not a readable video{where}: {error.strerror}") from None


class VideoWriter:
    """An H.264 video (.mp4) of uint8 H x W x 3 RGB frames; a frame of another size is fitted to the first one's.

    rate: frames a second. The encoder wants even sides: an odd one loses a pixel, and a side above MOST_SIDE makes the
    whole video smaller. Use it as a context manager. InputError where it cannot be written.
    """

    MOST_SIDE = 16384  # of libx264

    def __init__(self, path: PathLike, rate: Fraction) -> None:
        self._path, self._av = path, _load_av(Path(path))
        with self._one_line_errors():
            self._container = self._av.open(str(path), "w")
        try:
            self._stream: Any = self._container.add_stream("libx264", rate=rate.limit_denominator(65535))
        except ValueError:  # PyAV's UnknownCodecError
            self._container.close()
            raise InputError(f"{path}: this build of PyAV cannot write H.264; install PyPI's: pip install av") from None
        self._started = False

    def add(self, image: np.ndarray) -> None:
        """Append a frame."""
        if not self._started:
            self._start(*image.shape[:2])
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        with self._one_line_errors():
            self._container.mux(self._stream.encode(frame.reformat(self._stream.width, self._stream.height, "yuv420p")))

    def _start(self, height: int, width: int) -> None:
        shrink = min(1.0, self.MOST_SIDE / max(height, width))
        sides = [int(side * shrink) for side in (height, width)]
        self._stream.height, self._stream.width = (max(2, side - side % 2) for side in sides)
        self._stream.pix_fmt = "yuv420p"
        self._started = True
        if shrink < 1:
            size = f"{self._stream.width} x {self._stream.height}"
            logger.warning("%s: %d x %d is more than H.264 has; written as %s", self._path, width, height, size)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with self._one_line_errors():
                if self._started:
                    self._container.mux(self._stream.encode())
                self._container.close()
            return
        with suppress(self._av.FFmpegError):  # the first error is the one to tell
            self._container.close()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            raise WriteError(self._path, error.strerror) from None


def _load_av(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: a video needs PyAV ({error}): pip install '{DISTRIBUTION}[video]'") from None
    return av
