"""Which engine a folder opens: what `upsnet.load` opens, and what `upsnet engine explain` explains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from upsnet.engines.kinds import check_json
from upsnet.engines.manifest import ENGINES, Backend
from upsnet.errors import InputError
from upsnet.report import Report

ENGINE_FOLDER = "engine"  # of a run
ENGINE_FILE = "engine.json"  # in an engine's folder: which of its engines was chosen


class DamagedFolder(InputError):
    """An engine.json that cannot be used. file: it; text: what is wrong with it."""

    cure = "copy it again, or build the engine again with `make engine`"

    def __init__(self, file: Path, text: str) -> None:
        super().__init__(f"{file}: {text}; {self.cure}")
        self.file, self.text = file, text


class Choice(Report):
    """What is read of engine.json; what writes it is export/building.py."""

    cure: ClassVar[str] = ""

    chosen: Backend | None = None  # those of older versions do not say


def chosen_engine(folder: Path) -> Backend | None:
    """The backend that engine.json says is opened in its folder; None where there is none, or it does not say.

    DamagedFolder for what is no JSON file, a large one, one of another version, and for another backend's name.
    """
    path = folder / ENGINE_FILE
    if not os.path.lexists(path):
        return None
    try:
        check_json(path)
        return Choice.load(path).chosen
    except InputError as error:
        raise DamagedFolder(path, str(error).removeprefix(f"{path}: ")) from None


def engines_in(folder: Path) -> list[Backend]:
    """The backends whose engines a folder has; first the one that is opened, whether its file is there or not: what
    engine.json has chosen, else the first there is. Raises like `chosen_engine`."""
    found = [backend for backend, file in ENGINES.items() if os.path.isfile(folder / file)]
    chosen = chosen_engine(folder)
    return list(dict.fromkeys([chosen, *found])) if chosen is not None else found
