"""A function over many pieces of work in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeVar

from upsnet.errors import InputError

Work = TypeVar("Work")
Result = TypeVar("Result")

AHEAD = 4  # pieces given out for each process: none waits for work, and memory does not grow with the number of pieces


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def map_parallel(function: Callable[[Work], Result], pieces: Iterable[Work], workers: int) -> Iterator[Result]:
    """function(piece) of every piece, in their order. One worker: in this process. More: `function` is a module's own.

    Raises what `function` raises, without waiting for the rest; InputError when memory runs out, a process dies or
    workers < 1. The processes end with this one, however it ends.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: give at least 1")
    try:
        yield from _results(function, pieces, workers) if workers > 1 else map(function, pieces)
    except MemoryError as error:
        raise InputError(f"memory ran out in one of {workers} worker processes; give fewer workers") from error
    except BrokenProcessPool as error:
        raise InputError(
            f"one of {workers} worker processes died: if memory ran out, give fewer workers; in a script of your own, "
            'call this below `if __name__ == "__main__":`, or with workers=1'
        ) from error


def _results(function: Callable[[Work], Result], pieces: Iterable[Work], workers: int) -> Iterator[Result]:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        rest = iter(pieces)
        pending: deque[Future[Result]] = deque(pool.submit(function, p) for p in islice(rest, AHEAD * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, piece) for piece in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker: Ctrl-C is for the process that gives the work, and without that process there is none."""

    def end_with(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def chunked(items: Iterable[Work], size: int) -> Iterator[list[Work]]:
    """Lists of `size` consecutive items; the last may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
