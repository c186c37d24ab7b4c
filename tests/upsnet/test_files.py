from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from upsnet.errors import InputError
from upsnet.files import (
    atomic_path,
    check_target,
    check_utf8,
    longest_name,
    read_json,
    sha256,
    staged_folder,
    write_json,
    write_text,
)


def test_atomic_path_writes_on_success_and_makes_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.onnx"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".onnx" and temporary != target
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 125 + ".json"])
def test_names_as_long_as_they_can_be(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name] and read_json(tmp_path / name) == 1


@pytest.mark.parametrize("told", [0, -1, None])
def test_a_system_that_tells_no_longest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int | None) -> None:
    assert longest_name(tmp_path / "absent") == os.pathconf(tmp_path, "PC_NAME_MAX") > 0
    if told is None:
        monkeypatch.delattr(os, "pathconf")
    else:
        monkeypatch.setattr(os, "pathconf", lambda *_: told)
    assert longest_name(tmp_path / "absent") == 255


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_gives_the_mode(tmp_path: Path, umask: int, mode: int) -> None:
    target = tmp_path / "x.bin"
    before = os.umask(umask)
    try:
        for written in (0o600, 0o644):
            with atomic_path(target) as temporary:  # as safetensors does
                other = tmp_path / "other"
                other.write_bytes(b"new")
                other.chmod(written)
                os.replace(other, temporary)
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_on_error(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_refuses_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"file/x\.json"):
        write_json(tmp_path / "file" / "x.json", {})
    with pytest.raises(InputError, match=r"folder\.json"):
        write_json(tmp_path / "folder.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.json"}


def test_what_is_no_file_stays_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(InputError, match="a device or a pipe; give the name of a file"):
            write_text(path, "x")
        assert not path.is_file() and path.exists()


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/real")
    for text in ("first", "second"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "there/real").read_text() == text and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.rglob("*")} == {"link", "there", "real"}


def test_json_round_trip_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"ä": [1, 2.5, None]})
    assert read_json(tmp_path / "x.json") == {"ä": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"ä": [1, 2.5, None]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "not utf-8", "deep"])
def test_read_json_names_a_malformed_file_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.json: not valid JSON") as caught:
        read_json(tmp_path / "bad.json")
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, sha256):
        with pytest.raises(InputError, match=r"none\.json: cannot be read"):
            read(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "abc")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_staged_folder_joins_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    (out / "old" / "kept.txt").write_text("kept")
    with staged_folder(out) as stage:
        for name in ("old/new.txt", "fresh/deep/a.txt", "root.txt"):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(name)
    found = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
    names = ("old/new.txt", "fresh/deep/a.txt", "root.txt")
    assert found == {"old/kept.txt": "kept", **{name: name for name in names}}


def test_staged_folder_names_what_is_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "place").write_text("a file")
    with pytest.raises(InputError, match=r"out/place: cannot be written"), staged_folder(tmp_path / "out") as stage:
        (stage / "place").mkdir()
        (stage / "place" / "x").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["place"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / name, name)
    assert (tmp_path / name).read_text() == r"caf\udce9"
    check_utf8("café", "a library")
    with pytest.raises(
        InputError, match=r"caf.*: a library opens nothing whose name or folder is not UTF-8; rename it"
    ):
        check_utf8(tmp_path / name, "a library")


def test_a_target_is_looked_at_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_target(tmp_path / "file")
    check_target(tmp_path / "new/folder/file")
    for bad in (tmp_path, Path("/dev/null"), tmp_path / "file/below", Path("/proc/x.onnx")):
        with pytest.raises(InputError, match="cannot be written: "):
            check_target(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_in_the_way_goes_when_the_new_is_there(tmp_path: Path) -> None:
    old = tmp_path / "out" / "photos"
    old.mkdir(parents=True)
    (old / "old.txt").touch()

    def in_the_way() -> list[Path]:
        signal.raise_signal(signal.SIGINT)  # it waits for the renames
        return [old]

    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out", in_the_way) as stage:
        (stage / "photos").mkdir()
        (stage / "photos" / "new.txt").touch()
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["photos", "new.txt"]


def test_a_complaint_at_the_end_leaves_all_as_it_was(tmp_path: Path) -> None:
    def in_the_way() -> list[Path]:
        raise InputError("is there already")

    with pytest.raises(InputError), staged_folder(tmp_path, in_the_way) as stage:
        (stage / "new.txt").touch()
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from upsnet.files import staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as stage:\n"
        "    (stage / 'half.txt').touch(); os.kill(os.getpid(), signal.SIGTERM); signal.pause()"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, "")
    assert not list(tmp_path.iterdir())
