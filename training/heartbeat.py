"""Whether the other processes of a run are alive, whatever they wait for.

A process that dies is noticed at once: its connections close, and its launcher tells the others. A machine that has
lost its power or its network closes nothing, and the others would wait in a collective operation for as long as one may
last. So every process counts up a number in the store that they all share, and the first one of each machine looks at
the numbers of all.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from upsnet.errors import BAD_INPUT

EVERY = 2.0  # seconds
LONGEST_SILENCE = 120.0  # seconds; nothing holds Python's lock for nearly as long (a large JSON is read)
ENDED = 1 << 32  # added to the number of a process that ends as it should
LOST = 129  # exit status: another process, or the place of the data, is away; the same command goes on
SAID, HEARD = "said", "heard"  # keys: how many processes wanted to say what is wrong; how many others know of it


class Heartbeat:
    """Of one process among `world`. `store`: a connection of its own, as a main thread that waits keeps the first one;
    `looks`: whether this process looks after the others; `spread`: whether they are on several machines."""

    def __init__(self, store: dist.Store, rank: int, world: int, looks: bool, spread: bool) -> None:
        store.set_timeout(timedelta(seconds=LONGEST_SILENCE))
        self.store = dist.PrefixStore("heartbeat", store)
        self.rank, self.world, self.looks, self.spread = rank, world, looks, spread
        self.stopped = threading.Event()
        self.numbers, self.heard = [0] * world, [time.monotonic()] * world
        self.names = [f"process {rank}" for rank in range(world)]
        self.store.set(f"host/{rank}", socket.gethostname())
        for work in (self._beat, self._look):
            threading.Thread(target=work, daemon=True, name=f"heartbeat: {work.__name__}").start()

    def first_to_say(self) -> bool:
        """Whether this process is to say what is wrong with the run: no other one has. All others end then."""
        self.stopped.set()
        if self._add(SAID, 1) <= 1:  # 0: the process that held the store is gone
            return True
        self._add(HEARD, 1)
        return False

    def is_said(self) -> bool:
        """Whether another process has said what is wrong with the run; then this one is to end without a word."""
        self.stopped.set()
        return bool(self._add(SAID, 0) and self._add(HEARD, 1))

    def stop(self) -> None:
        """The process ends as it should."""
        self.stopped.set()
        self._add(f"beat/{self.rank}", ENDED)

    def linger(self) -> None:
        """Before the process ends that holds the store: the other machines must have heard that something is wrong."""
        until = time.monotonic() + 5 * EVERY
        while self.rank == 0 and self.spread and self._add(SAID, 0) and time.monotonic() < until:
            if self._add(HEARD, 0) >= self.world - 1:
                return
            time.sleep(EVERY / 10)

    def _add(self, key: str, number: int) -> int:
        """The key's number; 0 where the store is gone."""
        try:
            return self.store.add(key, number)
        except RuntimeError:
            return 0

    def _beat(self) -> None:
        while not self.stopped.wait(EVERY):
            self._add(f"beat/{self.rank}", 1)
            if self._add(SAID, 0) and not self.stopped.is_set():
                self._add(HEARD, 1)
                self.linger()
                leave(BAD_INPUT)
            if self.looks:
                self._listen()

    def _listen(self) -> None:
        """All numbers first: where the store falls silent in between, nothing was heard of any process."""
        numbers = [self._add(f"beat/{rank}", 0) for rank in range(self.world)]
        for rank, number in enumerate(numbers):
            if number and not self.numbers[rank]:  # it wrote its host before its first beat
                with suppress(RuntimeError):
                    self.names[rank] += f" on {self.store.get(f'host/{rank}').decode()}"
        now = time.monotonic()
        lives = [number > last or number >= ENDED for number, last in zip(numbers, self.numbers, strict=True)]
        self.heard = [now if alive else heard for alive, heard in zip(lives, self.heard, strict=True)]
        self.numbers = numbers

    def _look(self) -> None:
        """In a thread of its own, which asks the store nothing: the other one may wait for an answer, and keep others
        from asking, where the store's machine is gone."""
        while self.looks and not self.stopped.wait(EVERY):
            now, heard = time.monotonic(), self.heard
            if silent := [rank for rank in range(self.world) if heard[rank] < now - LONGEST_SILENCE]:
                # This process counts up in every round: it is heard for as long as the store answers.
                store_answers = heard[self.rank] > now - LONGEST_SILENCE / 2
                who = self.names[silent[0]] if store_answers else "any process"
                after = f"for {LONGEST_SILENCE:.0f} s; the checkpoints are from before"
                print(f"\nerror: nothing was heard of {who} of this run {after}", file=sys.stderr)
                leave(LOST)


def leave(status: int) -> NoReturn:
    """End the process at once, from any thread: the main one may wait for what will never come."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            stream.flush()
    os._exit(status)
