"""One replica of a server as a queue: what takes requests, what computes them, how long it takes and how it varies."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

POINTS = 1000  # of a distribution


class Replica(BaseModel):
    """Requests wait in one queue, in the order of their arrival. Nobody waits for a batch to fill: this is Triton's
    dynamic batching without a delay, as triton_repo/ has it.

    A taker that is free takes all requests that wait, up to the largest batch, and keeps them until they are answered:
    an instance of `upsnet_photo`, which decodes. An instance of the network that is free takes all that waits there, as
    many groups of the takers as fit into a batch. One processor, a GPU or the cores, computes one batch after another,
    whatever the number of instances.
    """

    model_config = ConfigDict(frozen=True)

    takers: int | None = None  # None: requests go to the network themselves
    instances: int = 1  # of the network
    max_batch: int = 1
    prepare_seconds: float = 0.0  # of each request, before it comes to the network
    batch_seconds: float = 0.0  # of the processor, for a batch of whatever size
    photo_seconds: float  # of the processor, for each request of the batch
    # What the times of a lone request are multiplied by, each value as often as another; the mean is 1. A larger batch
    # varies by as many seconds.
    variation: tuple[float, ...] = (1.0,)

    def seconds(self, batch: int) -> float:
        """Of the processor."""
        return self.batch_seconds + batch * self.photo_seconds

    @property
    def alone_seconds(self) -> float:
        """Of a request that meets nobody, on average."""
        return self.prepare_seconds + self.seconds(1)


def variation_of(seconds: np.ndarray) -> tuple[float, ...]:
    """Of measured times."""
    found = np.quantile(seconds, (np.arange(POINTS) + 0.5) / POINTS)
    return tuple(map(float, found / found.mean()))


def log_normal(p50: float, p99: float) -> np.ndarray:
    """POINTS times with these percentiles: times have a longer tail above than below."""
    normal = NormalDist()
    sigma = math.log(p99 / p50) / normal.inv_cdf(0.99)
    return p50 * np.exp(sigma * np.array([normal.inv_cdf((point + 0.5) / POINTS) for point in range(POINTS)]))
