"""SIGTERM and SIGINT as requests that a loop grants when it is ready."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(patient: bool = False) -> Iterator[list[int]]:
    """Gathers SIGTERM and SIGINT instead of dying of them; a second one acts as it did before.

    patient: a second one is gathered too. Under torchrun a Ctrl-C comes twice, from the terminal and from torchrun,
    which ends by force whoever is still there after half a minute.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not patient:
            signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, remember) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """For a loader's workers: Ctrl-C and batch systems signal all processes, but theirs is the main one's to grant."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
