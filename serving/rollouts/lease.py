"""A canary's lease: for how long the service sends a candidate a share of the requests. Whoever wants more renews it.

It is a file beside the steps, so that a command that dies takes its canary along: the lease ends by itself.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from serving.layout import ROLLOUTS
from serving.rollouts.record import who
from upsnet.contract import MODEL
from upsnet.errors import InputError
from upsnet.json_model import JsonModel

LEASE = "canary.json"
SECONDS = 10.0  # that a renewal lasts
MOST_SECONDS = 60.0  # that the service believes one to last: a clock may be wrong
DEADLINE = 30.0  # seconds in which a version must answer a mirrored request


class Lease(JsonModel):
    """Of one canary."""

    cure: ClassVar[str] = "; `upsnet deploy promote --canary` writes it"

    id: str = Field(default_factory=lambda: uuid.uuid4().hex, max_length=64)
    version: int  # the candidate
    share: float = Field(gt=0, le=1)  # of the requests
    until: float  # seconds since the epoch
    deadline: float = Field(default=DEADLINE, gt=0, le=600)
    who: str = Field(default_factory=who, max_length=200)

    @property
    def holds(self) -> bool:
        return 0 < self.until - time.time() <= MOST_SECONDS


def lease_path(repository: Path) -> Path:
    return repository / MODEL / ROLLOUTS / LEASE


def read_lease(path: Path) -> Lease | None:
    """The one that holds now. InputError where the file is damaged."""
    if not path.exists():
        return None
    try:
        lease = Lease.load(path)
    except InputError:
        if not path.exists():  # it went meanwhile
            return None
        raise
    return lease if lease.holds else None


def renew(path: Path, lease: Lease) -> None:
    """Begins it, or makes it last from now on. InputError where another one holds."""
    try:
        holder = read_lease(path)
    except InputError:  # rubbish is nobody's
        holder = None
    if holder is not None and holder.id != lease.id:
        raise InputError(
            f"{holder.who} runs a canary of version {holder.version}; wait until it has ended, {SECONDS:g} s after its "
            "command"
        )
    lease.until = time.time() + SECONDS
    lease.save(path)


def give_up(path: Path, lease: Lease) -> None:
    """Ends it, where it is still ours."""
    holder = read_lease(path)
    if holder is not None and holder.id == lease.id:
        path.unlink(missing_ok=True)
