"""JSON files that one class writes and reads back."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ValidationError

from upsnet.errors import InputError, one_line
from upsnet.files import PathLike, read_json, write_json


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
