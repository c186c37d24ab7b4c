"""What cannot be written is one line that names the file, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Halves
from tests.small_disk import small_disk
from upsnet import files
from upsnet.command_line.predict import predict_files
from upsnet.datasets.shapes import write_shapes
from upsnet.errors import InputError
from upsnet.files import WriteError, atomic_path, staged_folder, write_json, write_text
from upsnet.model import Model
from upsnet.photos import write_image, write_png
from upsnet.video import VideoWriter

NOISE = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
ROOM = 5000


def write_video(path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install -e '.[video]')")
    with VideoWriter(path, Fraction(10)) as writer:
        for _ in range(30):
            writer.add(NOISE)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.txt": lambda path: write_text(path, "long " * ROOM),
    "x.json": lambda path: write_json(path, list(range(ROOM))),
    "x.png": lambda path: write_png(path, NOISE),
    "x.jpg": lambda path: write_image(path, Image.fromarray(NOISE), "JPEG", quality=92),
    "x.webp": lambda path: write_image(path, Image.fromarray(NOISE), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with small_disk(ROOM), pytest.raises(InputError) as caught:
        WRITERS[name](path)
    assert str(caught.value) == f"{path}: cannot be written: File too large"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_video_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(ROOM), pytest.raises(InputError, match=r"x\.mp4: cannot be written: File too large"):
        write_video(tmp_path / "x.mp4")
    with pytest.raises(InputError, match=r"absent/x\.mp4: cannot be written: No such file or directory"):
        write_video(tmp_path / "absent" / "x.mp4")


def test_a_data_set_on_a_full_disk_is_absent(tmp_path: Path) -> None:
    with small_disk(ROOM), pytest.raises(InputError, match=r"new/shapes/train/\d+\.png: cannot be written: File"):
        write_shapes(tmp_path / "new" / "shapes", {"train": 1}, progress=False)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("number", range(6))
def test_every_write_of_predict_may_fail(
    halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk fills at each write in turn; the folder is as it was, and the line names a file in it."""
    for name in ("a.png", "sub/b.png"):
        write_png(tmp_path / "album" / name, NOISE)
    out = tmp_path / "out"
    list(predict_files(Model(halves), [tmp_path / "album" / "a.png"], out, []))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    writes, replace = iter(range(100)), os.replace

    def fails(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        if next(writes) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(source), None, os.fspath(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(InputError, match=f"^{out}.*: cannot be written: No space left on device$") as caught:
        list(predict_files(Model(halves), [tmp_path / "album"], out, []))
    assert ".partial" not in str(caught.value)
    assert not list(tmp_path.glob("**/.*"))
    assert before.keys() <= set(out.rglob("*"))
    assert number > 3 or {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before  # none has moved yet


def test_what_is_no_matter_of_writing_keeps_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "x"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(ConnectionResetError), staged_folder(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, "gone")
    with pytest.raises(InputError, match=r"^other: cannot be written: why$"), staged_folder(tmp_path / "out"):
        raise WriteError("other", "why")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_onto_a_full_disk_names_what_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3 * ROOM))
    with (
        small_disk(ROOM),
        pytest.raises(InputError, match=r"out/sub/copy: cannot be written: File too large"),
        staged_folder(tmp_path / "out") as stage,
    ):
        (stage / "sub").mkdir()
        shutil.copyfile(tmp_path / "large", stage / "sub" / "copy")


def test_the_error_passes_between_processes() -> None:
    error = pickle.loads(pickle.dumps(WriteError(Path("a/b"), "No space left on device")))
    assert isinstance(error, InputError) and str(error) == "a/b: cannot be written: No space left on device"


def upsnet(*arguments: str, stdout: int) -> tuple[int, str]:
    command = [sys.executable, "-m", "upsnet", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("data", "check", "--help"), ("--version",)])
def test_an_output_that_cannot_be_written(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        status, words = upsnet(*arguments, stdout=full.fileno())
    assert (status, words) == (2, "error: the output cannot be written: No space left on device\n")


def test_an_output_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    status, words = upsnet("--help", stdout=writing)
    os.close(writing)
    assert (status, words) == (1, "")
