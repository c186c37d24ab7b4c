"""Which photos kill the process that reads them: each is read once in another one."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from upsnet.bulk.photo_list import Entry
from upsnet.errors import InputError
from upsnet.photos import read_photo


def trial(entries: Sequence[Entry]) -> dict[str, str]:
    """Reasons to leave photos out, by place; of the others nothing. Takes as long as reading them.

    A photo can do that through a fault in a decoder, or when there is no memory for it.
    """
    spawn = multiprocessing.get_context("spawn")
    killers: dict[str, str] = {}
    start = 0
    while start < len(entries):
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_read, args=(entries[start:], sender), daemon=True)
        process.start()
        sender.close()
        begun = _count(receiver)
        process.join()
        if process.exitcode == 0:
            break
        if not begun:
            raise InputError(f"a process that tries photos cannot start ({_how(process.exitcode)})")
        start += begun
        entry = entries[start - 1]
        killers[entry.place] = f"{entry.photo}: reading it kills the process ({_how(process.exitcode)})"
    return killers


def _read(entries: Sequence[Entry], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, with which this one ends
    for entry in entries:
        sender.send_bytes(b"\0")
        with suppress(InputError):
            read_photo(entry.place, entry.photo)


def _count(receiver: Connection) -> int:
    count = 0
    while True:
        try:
            receiver.recv_bytes()
        except EOFError:
            return count
        count += 1


def _how(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
