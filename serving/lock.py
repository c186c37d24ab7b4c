"""One command at a time changes a model repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from serving.layout import ROLLOUTS
from upsnet.contract import MODEL
from upsnet.errors import InputError
from upsnet.files import writing

WAIT = 10.0  # seconds: a step takes a fraction of one
STEP, STAGING = "lock", "staging"  # for a step; for the copying of a model, beside which steps go on


@contextmanager
def locked(repository: Path, name: str = STEP, wait: float = WAIT) -> Iterator[None]:
    """Of all processes one is inside. The lock is the kernel's, and ends with its process, however that ends.

    InputError where another one is still inside after `wait` seconds, and where the repository cannot be written to.
    """
    file = repository / MODEL / ROLLOUTS / name
    with writing(repository):
        file.parent.mkdir(exist_ok=True)
        lock = FileLock(file, fallback_to_soft=False)
        try:
            lock.acquire(timeout=wait, poll_interval=0.02)
        except Timeout:
            what = "a model is being staged there" if name == STAGING else "another command is changing it"
            raise InputError(f"{repository}: {what}; wait for it, and begin again") from None
    try:
        yield
    finally:
        lock.release()
