"""Modules by name. The folders beside this package in a checkout, which no wheel holds, are never anybody else's."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from upsnet.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plugins_cuda", "training", "export", "serving", "eval")


def load_module(module: str, what: str) -> ModuleType:
    """A module of this package or of the workshop, as its commands and runtimes are. `what` needs it, in messages.

    InputError without the checkout, and where another folder or file of that name comes first on Python's path: it is
    not imported. Packages that are missing raise ModuleNotFoundError as usual.
    """
    folder = module.partition(".")[0]
    if folder in FOLDERS:
        _check_checkout(folder, what)
    return importlib.import_module(module)


def _check_checkout(folder: str, what: str) -> None:
    if not (ROOT / "pyproject.toml").exists():
        raise InputError(
            f"{what} needs the project's checkout, and only the package is installed here; clone the repository, "
            "`make setup` there, and use its .venv"
        )
    spec = importlib.util.find_spec(folder)
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != ROOT / folder / "__init__.py":
        where = f"{found} comes first" if found else "it is not"
        raise InputError(f"{what} needs {ROOT / folder} on Python's path, but {where}; start in another folder")
