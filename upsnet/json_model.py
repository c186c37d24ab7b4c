"""JSON files that one class writes and reads back, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ValidationError

from upsnet.errors import InputError, one_line
from upsnet.files import PathLike, read_json, write_json

MOST_STEPS = 2**53


class JsonModel(BaseModel):
    """A subclass names the keys of its file, and in `cure` what mends one that is wrong."""

    cure: ClassVar[str] = ""

    def save(self, path: PathLike) -> None:
        """Write atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Raises InputError, naming the file and the key, when it is missing, malformed or inconsistent."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(f"{path}: {one_line(error)}{cls.cure}") from error
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # nothing is wrong with what the file holds
                raise
            raise InputError(f"{error}{cls.cure}") from error.__cause__


def read_steps(path: PathLike, drop_half: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a metrics.jsonl and what they hold, the number "step" at least. InputError names file and line.

    drop_half: without a last line that was not written to its end.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            lines = stream.readlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if drop_half and not line.endswith("\n"):
            return
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        step = content.get("step") if isinstance(content, dict) else None
        if not isinstance(step, int) or not 0 <= step < MOST_STEPS:
            raise InputError(f"{path}: line {number} is not JSON with a step; delete it")
        yield line, content
