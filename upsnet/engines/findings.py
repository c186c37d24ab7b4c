"""What one check of an engine came to, and the names of the causes for which engines do not load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from upsnet.files import PathLike

Status = Literal["ok", "failed", "not checked"]
Cause = Literal[
    "no engine",  # another file, or none
    "wrong name",  # an engine of another backend than its name says
    "truncated",
    "altered",
    "no manifest",
    "manifest damaged",
    "another engine's manifest",
    "platform",
    "library missing",
    "library altered",
    "library open to others",
    "library does not load",
    "kernel ABI",
    "package missing",
    "package version",
    "driver",
    "driver too old",
    "GPU",
    "compute capability",
    "CPU instructions",
    "profile",
    "memory",
    "refused",  # by the runtime, in its own words
]


class Finding(BaseModel):
    """One line. `what` was looked at, `text` is what was found; where it failed, which cause it is, and the cure.
    file: of a library, its name."""

    model_config = ConfigDict(frozen=True)

    what: str
    status: Status
    text: str
    cause: Cause | None = None
    cure: str = ""
    file: str = ""


def fine(what: str, text: str) -> Finding:
    return Finding(what=what, status="ok", text=one(text))


def unknown(what: str, text: str) -> Finding:
    """Not checked, and why."""
    return Finding(what=what, status="not checked", text=one(text))


def failed(what: str, cause: Cause, text: str, cure: str = "") -> Finding:
    return Finding(what=what, status="failed", text=one(text), cause=cause, cure=one(cure))


def one(text: str) -> str:
    """On one line, whatever names of files hold."""
    return " ".join(text.splitlines())


def line(engine: PathLike, finding: Finding) -> str:
    """A failed check as an error has it: the file, what is wrong with it, the cure."""
    return f"{one(str(Path(engine)))}: {finding.text}" + (f"; {finding.cure}" if finding.cure else "")
