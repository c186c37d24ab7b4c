"""What a path, a folder and a pattern stand for."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from upsnet.errors import InputError
from upsnet.sources import Source, expand, find_sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files by name only, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "z.JPG",
        "a.jpg",
        "notes.txt",
        ".hidden.jpg",
        "B/clip.MP4",
        "B/a.v2.png",
        "B/deep/x.webp",
        ".git/y.png",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def names(*given: Any, **options: Any) -> list[str]:
    return [source.name for source in find_sources(given, **options)]


def test_a_folder_by_name_its_own_files_first(tree: Path) -> None:
    assert list(find_sources(["photos"])) == [
        Source(Path("photos/a.jpg"), "a", False, True),
        Source(Path("photos/z.JPG"), "z", False, True),
        Source(Path("photos/B/a.v2.png"), "B/a.v2", False, True),
        Source(Path("photos/B/clip.MP4"), "B/clip", True, True),
        Source(Path("photos/B/deep/x.webp"), "B/deep/x", False, True),
    ]
    assert names(tree) == names("photos/") == names("./photos") == ["a", "z", "B/a.v2", "B/clip", "B/deep/x"]


def test_names_that_differ_in_their_suffix_alone_keep_it(tree: Path) -> None:
    for name in ("a.PNG", "a.mov", "a.txt", "z.mp4"):
        (tree / name).touch()
    assert names(tree)[:5] == ["a.PNG", "a.jpg", "a", "z", "z"], "a photo and a video of one name are no pair"


def test_a_warning_names_the_rest_once_a_folder(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "upsnet"):
        names("photos")
        assert [record.getMessage() for record in caplog.records] == [
            "photos: left out what is neither photo nor video by its name: notes.txt"
        ]
        (tree / "B" / "more.txt").touch()
        names("photos")
        names("photos", warn=False)
        names("photos/B/deep")
    assert len(caplog.records) == 2 and caplog.records[1].getMessage().endswith("notes.txt and 1 more")


def test_patterns_as_a_shell_has_them(tree: Path) -> None:
    assert names("photos/*.[jJ]*") == ["a", "z"]
    assert names("photos/**/*.png", "photos/a.jpg") == ["a.v2", "a"]
    assert names("photos/*/") == ["a.v2", "clip", "deep/x"]  # folders match too
    (tree / "odd[1]*.jpg").touch()
    assert names("photos/odd[1]*.jpg") == ["odd[1]*"], "a file of that very name"
    assert list(expand(["photos/B/*"])) == sorted(expand(["photos/B/*"]))


def test_a_file_by_its_own_name_may_be_called_anything(tree: Path) -> None:
    assert names("photos/notes.txt", "photos/.hidden.jpg") == ["notes", ".hidden"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.jpg", "^none.jpg: no such file$"),
        ("photos/*.bmp", r"^photos/\*.bmp: no file matches$"),
        ("empty", "^empty: a folder without photos$"),
        ("papers", "^papers: a folder without photos; what it holds is no photo by its name \\(b.pdf\\)$"),
        (".", r"^\.: a folder without photos"),
        ("", "^an empty name"),
    ],
)
def test_what_is_not_there(tree: Path, given: str, message: str) -> None:
    (tree.parent / "empty" / "sub").mkdir(parents=True)
    (tree.parent / "papers").mkdir()
    (tree.parent / "papers" / "b.pdf").touch()
    if given == ".":
        os.chdir("empty")
    with pytest.raises(InputError, match=message):
        names(given)


def test_a_folder_that_is_left_out(tree: Path) -> None:
    assert names("photos", without=Path("photos/B")) == ["a", "z"]
    assert names("photos", without=tree / "B" / "deep") == ["a", "z", "B/a.v2", "B/clip"]
    with pytest.raises(InputError, match="photos: both the folder of the photos and the output's"):
        names("photos", without=tree)


def test_links_to_folders_are_followed_but_not_in_circles(tree: Path) -> None:
    (tree / "B" / "up").symlink_to(tree)
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").touch()
    (tree / "linked").symlink_to(elsewhere)
    assert names("photos") == ["a", "z", "B/a.v2", "B/clip", "B/deep/x", "linked/far"]


def test_nothing_is_listed_before_it_is_asked_for(tree: Path) -> None:
    found = find_sources(["photos", "none"])
    assert next(found).name == "a"
    (tree / "B" / "later.png").touch()
    with pytest.raises(InputError, match="none"):
        assert "B/later" in [source.name for source in iter(found.__next__, None)]
