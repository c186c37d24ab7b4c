"""Shards that are missing, cut or changed: one line that names the file, in every command; and the doctor on shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from upsnet import storage
from upsnet.command_line.main import make_root
from upsnet.datasets.doctor.check import check_split
from upsnet.datasets.doctor.json_file import find_splits
from upsnet.datasets.folder import PanopticFolder
from upsnet.datasets.split import ShardSplit, Split
from upsnet.errors import InputError, ServerError

TAR = "val-000001.tar"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change(key: str, value: object, row: int | None = None) -> Callable[[Path], None]:
    """Of the index's `images`, or of the index itself."""

    def edit(folder: Path) -> None:
        path = folder / "val.shards.json"
        content: dict[str, Any] = json.loads(path.read_text())
        if row is None:
            content[key] = value
        else:
            content["images"][key][row] = value
        path.write_text(json.dumps(content))

    return edit


def copy_id(folder: Path) -> None:
    images = json.loads((folder / "val.shards.json").read_text())["images"]
    change("image_id", images["image_id"][1], 0)(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / TAR).unlink(), r"val\.json: \S+/val-000001\.tar: no such shard; bring it"),
    "cut": (
        lambda folder: os.truncate(folder / TAR, 5000),
        r"val\.json: \S+/val-000001\.tar: 5000 bytes, not \d+: it was cut or changed; write the shards again",
    ),
    "no index": (lambda folder: (folder / "val.shards.json").unlink(), r"val\.shards\.json: no such file"),
    "cut index": (
        lambda folder: os.truncate(folder / "val.shards.json", 900),
        r"val\.shards\.json: no index of shards \(Invalid JSON: .*\); write the shards again",
    ),
    "no JSON": (lambda folder: (folder / "val.json").unlink(), r"val\.json: no such file"),
    "another JSON": (
        lambda folder: (folder / "val.json").write_bytes((folder / "val.json").read_bytes() + b" "),
        r"val\.json: not the JSON that the shards of \S+val\.shards\.json were made of",
    ),
    "place": (
        change("photo", 10**9, 0),
        r"val\.shards\.json: image \d+: its photo would lie after the end of val-000000",
    ),
    "row": (change("shard", 77, 3), r"val\.shards\.json: images: 77 is no row of the \d+ shards: it was changed"),
    "twice": (copy_id, r"val\.shards\.json: images: an image id stands there twice: it was changed"),
    "version": (change("version", 2), r"val\.shards\.json: no index of shards \(version: Input should be 1\)"),
    "name": (
        change("shards", [{"name": "../x.tar", "size": 1, "sha256": "0" * 64, "images": 1}]),
        r"val\.shards\.json: no index of shards \(shards\.0\.name: String should match",
    ),
    "columns": (change("image_id", [1], None), r"val\.shards\.json: no index of shards \(image_id: Extra inputs"),
}


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_the_file(copied: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    damage(copied)
    with pytest.raises(InputError, match=said) as caught:
        PanopticFolder(copied / "val.shards.json")
    assert "\n" not in str(caught.value)


def test_an_id_that_the_shards_lack(copied: Path) -> None:
    index = json.loads((copied / "val.shards.json").read_text())
    gone = index["images"]["image_id"][4]
    change("image_id", 4, 4)(copied)
    with pytest.raises(InputError, match=rf"val\.json: image {gone}: its photo \S+ is in no shard of"):
        PanopticFolder(copied / "val.shards.json")


def test_the_doctor_finds_what_was_found_in_folders(shapes_folder: Path, shards: Path) -> None:
    folder = check_split(Split.usual(shapes_folder / "val.json"), 1, progress=False)
    packed = check_split(ShardSplit(shards=str(shards / "val.shards.json")), 2, progress=False)
    assert packed.tally == folder.tally and not packed.tally.counts
    assert packed.to_json()["shards"] == str(shards / "val.shards.json")
    assert [split.name for split in find_splits(shards)] == ["train", "val"]


def test_the_doctor_goes_on(copied: Path) -> None:
    """A byte of a PNG, a byte that no image needs, a missing shard: each is found, and the rest is looked at."""
    content = json.loads((copied / "val.shards.json").read_text())
    images, names = content["images"], [shard["name"] for shard in content["shards"]]
    flip(copied / names[0], images["png"][1] + images["png_size"][1] // 2)
    flip(copied / names[2], (copied / names[2]).stat().st_size - 1)
    (copied / TAR).unlink()
    tally = check_split(ShardSplit(shards=str(copied / "val.shards.json")), 1, progress=False).tally
    assert tally.images == 60
    missing, *changed = tally.texts["shard"]
    assert TAR in missing and "no such shard" in missing
    assert [
        name in text and "its bytes were changed" in text
        for name, text in zip((names[0], names[2]), changed, strict=True)
    ] == [True, True]
    (unreadable,) = tally.texts["png-unreadable"]
    assert unreadable.startswith(f"image {images['image_id'][1]}: {copied}/{names[0]}: ")
    assert set(tally.counts) == {"shard", "png-unreadable"}


def test_the_doctor_at_a_shard_that_cannot_be_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, split = storage.read, ShardSplit(shards=str(shards / "val.shards.json"))

    def failing(kind: type[InputError]) -> Callable[..., bytes]:
        def fail(place: str, start: int = 0, size: int | None = None) -> bytes:
            if place.endswith(TAR) and start == 0:  # as it is read whole
                raise kind(f"{place}: cannot be read: Input/output error")
            return read(place, start, size)

        return fail

    monkeypatch.setattr(storage, "read", failing(InputError))
    tally = check_split(split, 1, progress=False).tally
    assert tally.texts == {"shard": [f"{shards}/{TAR}: cannot be read: Input/output error"]}
    monkeypatch.setattr(storage, "read", failing(ServerError))
    with pytest.raises(ServerError, match=TAR):  # not clean, and no fault of the data
        check_split(split, 1, progress=False)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(make_root(), [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_commands_on_shards(shards: Path, copied: Path, tmp_path: Path) -> None:
    status, said, _ = run("data", "check", shards, "--workers", 1)
    assert status == 0 and said.count("0 errors, 0 warnings") == 2
    status, said, _ = run("data", "show", shards / "val.shards.json", "--out", tmp_path / "page.html", "--limit", 3)
    assert status == 0 and (tmp_path / "page.html").read_text().count("data:image/jpeg") == 6
    status, _, said = run("data", "split", shards / "val.shards.json", "--out", tmp_path / "split")
    assert status == 2 and "its photos lie in shards; give the JSON of the set in folders" in said
    status, _, said = run("pq", "--gt-json", shards / "val.shards.json", "--pred-json", shards / "val.json")
    assert status == 2 and said.count("\n") == 1 and "val.shards.json" in said
    (copied / TAR).unlink()
    assert run("data", "check", copied / "val.shards.json", "--workers", 1)[0] == 1
    (copied / "val.shards.json").unlink()
    status, _, said = run("data", "check", copied / "val.shards.json")
    assert status == 2 and said == f"error: {copied}/val.shards.json: no such file or folder\n"
