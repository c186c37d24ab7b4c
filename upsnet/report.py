"""Reports: JSON files that one class writes and reads back."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from upsnet.errors import InputError, one_line
from upsnet.files import PathLike, read_json, write_json


class Report(BaseModel):
    """What a command found; a subclass names the keys of its file. A file without a version is of version 1.

    The version goes up when a key goes or changes its meaning; a new key is no new version.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1

    def save(self, path: PathLike) -> None:
        """Write atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Raises InputError, naming the file and the key, when it is missing, malformed or of another version."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(f"{path}: {one_line(error)}; make this file again") from error


class Sparse(BaseModel):
    """Its JSON leaves out what is None."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}
