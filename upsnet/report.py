"""What the files of all reports have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, field_validator, model_serializer

from upsnet.json_model import JsonModel


class Report(JsonModel):
    """What a command found; a subclass names the keys of its file. A file without a version is of version 1.

    The version goes up when a key goes or changes its meaning; a new key is no new version.
    """

    model_config = ConfigDict(frozen=True)

    cure: ClassVar[str] = "; make this file again"

    version: Literal[1] = 1  # load refuses another one

    @field_validator("version", mode="before")
    @classmethod
    def _number(cls, version: object) -> object:
        if isinstance(version, bool | float):  # true and 1.0 are equal to 1
            raise ValueError("Input should be 1")
        return version


class Sparse(BaseModel):
    """Its JSON leaves out what is None."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}
