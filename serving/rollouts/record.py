"""What is told of a repository's versions: who serves, who may follow, and everything that has happened."""

from __future__ import annotations

import getpass
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from serving.layout import NOW, ROLLOUTS, is_managed
from upsnet.contract import MODEL
from upsnet.errors import InputError
from upsnet.json_model import JsonModel

RECORD = "record.json"
Action = Literal["begin", "stage", "promote", "refuse", "rollback", "discard"]


def who() -> str:
    """user@host, of whoever runs this."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as containers have
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Event(JsonModel):
    """One step: begin (version 1 as it was found), stage, promote, refuse (a gate's no), rollback, discard."""

    action: Action
    version: int  # that it is about: rollback's is the one that serves again
    time: str = Field(default_factory=now)  # UTC, ISO 8601
    who: str = Field(default_factory=who)
    seconds: float | None = None  # that it took, gate included
    digests: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the version's files, where it came
    reasons: list[str] = Field(default_factory=list)  # of a refusal; of a step that somebody forced
    figures: dict[str, Any] = Field(default_factory=dict)  # of the gate: what was compared, and what came of it


class Record(JsonModel):
    """A repository's state after a step. Version numbers are never used again."""

    cure: ClassVar[str] = "; it was made by a newer version of this program, or is damaged"

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)  # of the repository
    step: int = 0
    served: tuple[
        int, ...
    ]  # versions that may serve: the last one does, the one before it is what a rollback returns to
    candidate: int | None = None
    events: tuple[Event, ...] = ()

    @property
    def serving(self) -> int:
        return self.served[-1]

    @property
    def previous(self) -> int | None:
        return self.served[-2] if len(self.served) > 1 else None

    @property
    def highest(self) -> int:
        """The highest version number there ever was."""
        return max(self.served[0], *(event.version for event in self.events))


def read_record(repository: Path) -> Record:
    """Of a managed repository. InputError where it is none."""
    if not is_managed(repository):
        raise InputError(
            f"{repository} has no roll-outs; `upsnet deploy --run` makes a repository, `upsnet deploy stage` adds to it"
        )
    return Record.load(repository / MODEL / ROLLOUTS / NOW / RECORD)
