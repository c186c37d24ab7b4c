"""A replica while it is simulated: who waits in it, what is being done, and when that ends."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from serving.capacity.replica import Replica


class Group(NamedTuple):
    """Requests that a taker took at once; without takers, one."""

    arrivals: list[float]  # when each came
    more: float  # by what share of its times a lone request would vary
    seconds: float  # that it is prepared


class Batch(NamedTuple):
    """What the network computes at once."""

    groups: list[Group]
    seconds: float  # that it is computed


Push = Callable[[float, "Station", Group | Batch], None]  # at this moment, this is prepared, or answered


class Station:
    """The queue of `Replica`. Whatever begins is pushed, and comes back to `prepared` or `answered` when it ends."""

    def __init__(self, replica: Replica, push: Push, rng: random.Random) -> None:
        self.under_way = 0  # requests
        self._replica, self._push, self._random = replica, push, rng.random
        self._durations = [replica.seconds(size) for size in range(replica.max_batch + 1)]
        self._variation = [factor - 1 for factor in replica.variation]
        self._most_taken = replica.max_batch if replica.takers is not None else 1
        self._takers = math.inf if replica.takers is None else replica.takers  # that are free
        self._instances = replica.instances  # that are free
        self._queue: deque[float] = deque()  # arrivals
        self._prepared: deque[Group] = deque()
        self._free_from = 0.0  # the processor

    def arrive(self, now: float) -> None:
        self._queue.append(now)
        self.under_way += 1
        self._take(now)

    def prepared(self, now: float, group: Group) -> None:
        self._prepared.append(group)
        self._compute(now)

    def answered(self, now: float, batch: Batch) -> None:
        self._instances += 1
        self._takers += len(batch.groups)
        self.under_way -= sum(len(group.arrivals) for group in batch.groups)
        self._take(now)
        self._compute(now)

    def _take(self, now: float) -> None:
        while self._queue and self._takers:
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._most_taken))]
            more = self._variation[int(len(self._variation) * self._random())]
            seconds = (len(taken) + more) * self._replica.prepare_seconds
            self._takers -= 1
            group = Group(taken, more, seconds)
            if seconds:
                self._push(now + seconds, self, group)
            else:
                self.prepared(now, group)

    def _compute(self, now: float) -> None:
        while self._prepared and self._instances:
            groups = [self._prepared.popleft()]
            size = len(groups[0].arrivals)
            while self._prepared and size + len(self._prepared[0].arrivals) <= self._replica.max_batch:
                groups.append(self._prepared.popleft())
                size += len(groups[-1].arrivals)
            seconds = self._durations[size] + self._durations[1] * groups[0].more
            self._instances -= 1
            self._free_from = max(self._free_from, now) + seconds
            self._push(self._free_from, self, Batch(groups, seconds))
