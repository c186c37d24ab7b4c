"""Runs by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

import upsnet
from upsnet.errors import InputError
from upsnet.runs import existing_run, find_run

PULLED = "panoptic_fpn_r50_3x"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    return tmp_path


def test_a_bare_name_is_a_run_in_runs() -> None:
    assert find_run("mine") == existing_run("mine") == existing_run(Path("mine")) == Path("runs/mine")


def test_what_is_here_comes_first(here: Path) -> None:
    (here / "mine").mkdir()
    assert find_run("mine") == existing_run("mine") == "mine"
    (here / "runs" / PULLED).mkdir()
    assert find_run(PULLED) == Path("runs") / PULLED
    (here / PULLED).write_text("")
    assert find_run(PULLED) == PULLED


@pytest.mark.parametrize(
    "run", ["runs/mine", "runs/none", "./mine", "mine/", "../mine", "/none", "grpc://mine", "model.onnx", "", ".", ".."]
)
def test_anything_else_is_what_it_is(run: str) -> None:
    assert find_run(run) == existing_run(run) == run


def test_a_name_of_nothing_names_both_places() -> None:
    with pytest.raises(InputError, match=r"^none: no such run: neither none nor runs/none is here; `make demo` makes"):
        existing_run("none")
    assert find_run("none") == "none"  # upsnet.load says what it takes


def test_a_published_network_can_be_pulled() -> None:
    for name in (PULLED, f"runs/{PULLED}"):
        for find in (find_run, existing_run, upsnet.load):
            with pytest.raises(InputError, match=f"{name}: no such run: .* here; `upsnet pull {PULLED}` fetches that"):
                find(name)
    assert find_run(f"other/{PULLED}") == f"other/{PULLED}"


def test_a_file_in_runs_is_no_run(here: Path) -> None:
    (here / "runs/notes").write_text("")
    assert find_run("notes") == "notes"
