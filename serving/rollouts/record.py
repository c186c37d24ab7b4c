"""What is told of a repository's versions: who serves, who may follow, and everything that has happened."""

from __future__ import annotations

import getpass
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from serving.layout import NOW, ROLLOUTS, is_managed, latest_version
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
    """One step: begin (the version that was found), stage, promote, refuse (a gate's no), rollback, discard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    version: int = Field(ge=1)  # that it is about: rollback's is the one that serves again
    time: str = Field(default_factory=now)  # UTC, ISO 8601
    who: str = Field(default_factory=who)
    seconds: float | None = None  # that it took, gate included
    digests: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the version's files, where it came
    source: str = ""  # the folder that it was staged from
    reasons: list[str] = Field(default_factory=list)  # of a refusal; of a step that somebody forced
    figures: dict[str, Any] = Field(default_factory=dict)  # of the gate: what was compared, and what came of it


class Record(JsonModel):
    """A repository's state after a step. Version numbers are never used again."""

    cure: ClassVar[str] = "; it was made by a newer version of this program, or is damaged"
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)  # of the repository
    step: int = Field(0, ge=0)
    # Versions that have passed: the last one serves, the one before it is what a rollback returns to.
    served: tuple[int, ...] = Field(min_length=1)
    candidate: int | None = None
    withdrawn: tuple[int, ...] = ()  # that served until a rollback; their files stay until the next stage
    events: tuple[Event, ...] = ()

    @property
    def serving(self) -> int:
        return self.served[-1]

    @property
    def previous(self) -> int | None:
        return self.served[-2] if len(self.served) > 1 else None

    @property
    def kept(self) -> set[int]:
        """The versions whose files are there."""
        return {*self.served, *self.withdrawn, *([] if self.candidate is None else [self.candidate])}

    @property
    def known(self) -> set[int]:
        """All versions that there have ever been."""
        return self.kept | {event.version for event in self.events}

    @property
    def highest(self) -> int:
        return max(self.known)

    def arrival(self, version: int) -> Event:
        """The event by which a version came."""
        return next(each for each in self.events if each.version == version and each.action in ("begin", "stage"))


def check_same(record: Record, expected: Record) -> None:
    """InputError where another step was made since `expected`."""
    if (record.id, record.step) != (expected.id, expected.step):
        last = record.events[-1]
        raise InputError(
            f"meanwhile {last.who} made another step ({last.action}, version {last.version}); look at "
            "`upsnet deploy status` and begin again"
        )


def read_record(repository: Path) -> Record:
    """Of a managed repository. InputError where it is none."""
    latest_version(repository)  # InputError where it is no repository at all
    if not is_managed(repository):
        raise InputError(f"{repository} has one version and no roll-outs yet; `upsnet deploy stage` adds another")
    return Record.load(repository / MODEL / ROLLOUTS / NOW / RECORD)
