"""Runs by their names: `--run x` is the folder x, or what else has that name, else runs/x."""

from __future__ import annotations

import os
from pathlib import Path

from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.zoo.networks import NETWORKS

RUNS = Path("runs")


def run_folder(name: str) -> Path:
    """Where a run of that name lies."""
    return RUNS / name


def find_run(run: PathLike) -> PathLike:
    """runs/NAME for a bare name of which nothing is here but that folder; anything else as it is.

    InputError where nothing is here, and `upsnet pull` knows the name.
    """
    text = os.fspath(run)
    path = Path(text)
    if not path.name or "://" in text or os.path.lexists(text):
        return run
    folder = run_folder(path.name)
    if _is_bare(text) and os.path.isdir(folder):
        return folder
    if path.name in NETWORKS and (_is_bare(text) or path == folder):
        raise InputError(f"{_nowhere(text)}; `upsnet pull {path.name}` fetches that network and makes {folder}")
    return run


def existing_run(run: PathLike) -> PathLike:
    """`find_run` for options of commands: any other bare name that is neither here nor in runs/ is an InputError, too.

    With a suffix, as model.onnx, it is the name of a file, of which whoever opens it says what it needs.
    """
    found = find_run(run)
    text = os.fspath(found)
    if _is_bare(text) and not Path(text).suffix and not os.path.lexists(text):
        raise InputError(f"{_nowhere(text)}; `make demo` makes runs/demo, `make train` any other")
    return found


def _is_bare(text: str) -> bool:
    return os.path.basename(text) == text and text not in ("", os.curdir, os.pardir)


def _nowhere(text: str) -> str:
    where = f"neither {text} nor {run_folder(text)} is here" if _is_bare(text) else "it is not here"
    return f"{text}: no such run: {where}"
