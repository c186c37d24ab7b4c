"""SIGTERM and SIGINT as requests: the loop stops when its step is over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(patient: bool = False) -> Iterator[list[int]]:
    """Yields the list of the SIGTERM and SIGINT that have come. The first one does not end the process, a second does.

    patient: a second one does not either. Under torchrun a Ctrl-C comes twice, from the terminal and from torchrun,
    which ends by force every process that is still there after half a minute.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not patient:
            signal.signal(number, previous[number])

    previous: dict[int, signal._HANDLER] = {number: signal.signal(number, remember) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """For a loader's workers: Ctrl-C and batch systems signal all processes, but the main process ends its workers."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
