"""Frames out of video files and into them, by PyAV."""

from __future__ import annotations

import logging
import sys
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upsnet.errors import InputError
from upsnet.video import Video, VideoWriter

av: Any = pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")

FRAMES = 12


def frame_at(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Dark, the top left corner white, the blue channel as the frame's number."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 2] = 20 * index
    frame[: height // 2, : width // 2] = 255
    return frame


def write(path: Path, rotation: int | None = None, noise: bool = False, **options: str) -> Path:
    """As a camera writes it: coded frames, and how they are to be turned when shown."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(FRAMES):
            frame = frame_at(index)
            if noise:
                frame[24:] = rng.integers(0, 256, (24, 64, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def close(frame: np.ndarray, expected: np.ndarray) -> bool:
    return frame.shape == expected.shape and bool(abs(frame.astype(int) - expected).mean() < 6)


def test_every_frame_in_order(tmp_path: Path) -> None:
    with Video(write(tmp_path / "clip.mp4")) as video:
        assert (video.rate, video.length) == (10, FRAMES)
        frames = list(video)
    assert len(frames) == FRAMES
    assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in frames)
    assert all(close(frame, frame_at(index)) for index, frame in enumerate(frames))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    """The display matrix turns by so many degrees counterclockwise, as np.rot90 does; a phone held upright has -90."""
    with Video(write(tmp_path / "clip.mov", rotation)) as video:
        assert close(next(iter(video)), np.rot90(frame_at(0), rotation // 90))


def test_written_and_read(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", Fraction(30000, 1001)) as writer:
        for index in range(FRAMES):
            writer.add(frame_at(index, 49, 65))  # odd sides
        writer.add(frame_at(0, 96, 128))  # fitted
    with Video(tmp_path / "out.mp4") as video:
        assert (video.rate, video.length) == (Fraction(30000, 1001), FRAMES + 1)
        frames = list(video)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * (FRAMES + 1)
    assert close(frames[3], frame_at(3)) and close(frames[-1], frame_at(0))


def test_frames_are_read_one_at_a_time(tmp_path: Path) -> None:
    """The file may lose its end while its beginning is read."""
    path = write(tmp_path / "clip.mkv", noise=True)
    with Video(path) as video:
        frames = iter(video)
        assert close(next(frames)[:24], frame_at(0)[:24])
        assert video._count == 1


def damaged(folder: Path) -> dict[str, Path]:
    whole = write(folder / "whole.mp4").read_bytes()
    contents = {"junk.mp4": b"junk" * 100, "empty.mp4": b"", "cut.mp4": whole[: len(whole) * 3 // 4]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("junk.mp4", "junk.mp4: not a readable video: Invalid data"),
        ("empty.mp4", "empty.mp4: not a readable video: "),
        ("cut.mp4", "cut.mp4: not a readable video: "),
        ("sound.wav", "sound.wav: holds no video"),
        ("none.mp4", "none.mp4: no such file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    files = damaged(tmp_path)
    with pytest.raises(InputError, match=message) as caught, Video(files.get(name, tmp_path / name)) as video:
        list(video)
    assert "\n" not in str(caught.value)


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "clip.mp4", noise=True, movflags="faststart")  # the index comes before the frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with caplog.at_level(logging.WARNING, "upsnet"), Video(path) as video:
        count = len(list(video))
    assert 0 < count < FRAMES
    assert caplog.messages == [f"{path}: damaged or cut: only {count} of {FRAMES} frames are there"]


def test_over_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upsnet.video.MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="64 x 48 pixels is over the limit"), Video(write(tmp_path / "x.mp4")) as video:
        next(iter(video))


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"clip\.mp4: a video needs PyAV .*pip install 'upsnet-trt\[video\]'"):
        Video(path)


@pytest.mark.parametrize(
    ("shape", "size"), [((24, 66_000, 3), (4, 16384)), ((40_000, 3, 3), (16384, 2)), ((1, 1, 3), (2, 2))]
)
def test_sizes_that_the_encoder_does_not_have(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with VideoWriter(tmp_path / "long.mp4", Fraction(10)) as writer:
        for _ in range(2):
            writer.add(np.zeros(shape, np.uint8))
    with Video(tmp_path / "long.mp4") as video:
        assert [frame.shape[:2] for frame in video] == [size] * 2
    assert len(caplog.messages) == (max(shape) > 16384)
