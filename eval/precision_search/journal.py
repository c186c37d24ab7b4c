"""Every evaluation of a search as a line of a file, so that an interrupted search goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from upsnet.datasets.places import File, read_file
from upsnet.errors import InputError, one_line
from upsnet.files import writing
from upsnet.manifest import Recipe


def fingerprint(paths: Iterable[File | str], title: str) -> str:
    """SHA-256 of what is in these files, in their order, whatever they are called. InputError for one that cannot be
    read."""
    found = hashlib.sha256()
    for path in tqdm(list(paths), title, unit="file", disable=None, leave=False):
        found.update(hashlib.sha256(read_file(path)).digest())
    return found.hexdigest()


class Evaluation(BaseModel):
    """One recipe on so many images."""

    recipe: Recipe
    images: int
    pq: float
    time: float


class Journal:
    """The evaluations in `path`, whose first line says what they are of.

    subject: what must be the same for a figure to hold (checkpoint, data set, calibration, how it is measured).
    InputError where the file is of another subject, or no such file.
    """

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        self.path = path
        self.evaluations: list[Evaluation] = []
        if path.exists():
            self._read(subject)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(subject)

    def find(self, recipe: Recipe, images: int) -> Evaluation | None:
        """What the recipe was found to be on as many images."""
        return next((each for each in self.evaluations if (each.recipe, each.images) == (recipe, images)), None)

    def add(self, evaluation: Evaluation) -> None:
        """It is on the disk when this returns."""
        self._append(evaluation.model_dump(mode="json"))
        self.evaluations.append(evaluation)

    def _read(self, subject: dict[str, Any]) -> None:
        cure = "delete it, or give another --out"
        try:
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # without a line that was not written to its end
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
            self.evaluations = [Evaluation.model_validate(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            reason = one_line(error) if isinstance(error, ValidationError) else str(error)
            raise InputError(f"{self.path}: cannot be read as the evaluations of a search ({reason}); {cure}") from None
        if first is None:
            self.path.unlink()
            self._append(subject)
            return
        if first != json.loads(json.dumps(subject)):
            keys = sorted({*subject, *first} if isinstance(first, dict) else subject)
            others = [key for key in keys if not isinstance(first, dict) or first.get(key) != subject.get(key)]
            raise InputError(f"{self.path}: evaluations with another {', '.join(others)}; {cure}")
        if whole != text:
            with writing(self.path):
                os.truncate(self.path, len(whole.encode()))

    def _append(self, value: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(value) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
