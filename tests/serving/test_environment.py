"""The server's environment: what can make one, what is refused, and going on without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import serving.environment as module
from serving.environment import Environment, find_python, make
from serving.server import TritonServer
from upsnet.command_line.command import make_app
from upsnet.errors import InputError

ANSWERS = {
    "sound": '["/site", "/libraries", "3.12"]',
    "without its library": '["/site", "", "3.12"]',
    "too new": '["/site", "/libraries", "3.13"]',
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH; this process's own interpreter does not count."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_interpreter_is_one_that_serves(path: Path) -> None:
    with pytest.raises(InputError, match=r"needs Python 3.12 or 3.11 .* none is here; `uv python install 3.12`"):
        find_python()
    put(path, "python3", f"echo '{ANSWERS['too new']}'")
    put(path, "python3.12", f"echo '{ANSWERS['without its library']}'")
    put(path, "python3.11", "echo 'pyenv: python3.11: command not found'; exit 127")
    with pytest.raises(InputError, match="none is here"):
        find_python()
    put(path, "uv", f"[ $4 = 3.11 ] && echo {path}/managed")
    put(path, "managed", f"echo '{ANSWERS['sound']}'")
    assert find_python() == f"{path}/managed"
    put(path, "python3.11", f"echo '{ANSWERS['sound']}'")
    assert find_python() == "python3.11"


def test_left_out_or_refused(path: Path) -> None:
    app = make_app(module.main)
    refused = CliRunner().invoke(app, [str(path / "new")])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: the server needs")
    left_out = CliRunner().invoke(app, [str(path / "new"), "--optional"])
    assert (left_out.exit_code, left_out.stderr.count("\n")) == (0, 1)
    assert left_out.stderr.startswith("Triton is left out: ") and not (path / "new").exists()


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is no virtual environment; move it"):
        make(tmp_path, sys.executable)
    assert (tmp_path / "mine.txt").exists()


def test_what_a_link_leads_to_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "pyvenv.cfg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="link is a link, and would be made anew; remove it"):
        make(tmp_path / "link", sys.executable)
    assert (tmp_path / "theirs" / "pyvenv.cfg").exists()


@pytest.mark.parametrize("folder", ["nothing", sys.prefix], ids=["no folder", "no server in it"])
def test_missing_environment(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"the server's environment .*make it with `make setup`"):
        TritonServer(tmp_path, environment=Path(folder)).start()


def test_environment_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSNET_TRITON_ENV", "/nowhere")
    with pytest.raises(InputError, match=r"the server's environment /nowhere is missing"):
        Environment.find(None)
