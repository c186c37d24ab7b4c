"""Random numbers as a function of (seed, stream, index): no generator, no state.

An image's draws depend on its seed alone, so that they are the same on every device, in every batch, for any number of
processes and after a resume. The numbers are those of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014), whose 64 bits pass BigCrush; a stream starts at a hashed place of its sequence of
2^64 numbers, so that two streams of the lengths used here practically never meet.
"""

from __future__ import annotations

import torch
from torch import Tensor

RPN_STREAM, ROI_STREAM, PANOPTIC_STREAM = range(3)

# Arithmetic is modulo 2^64; int64 wraps around on every device.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
SECOND_FACTOR = 0x94D049BB133111EB - 2**64


def keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    """int64 [B, count] from 0 up, 63 random bits: to order by, since equal ones practically never occur."""
    start = mix(mix(seeds) + stream)
    steps = torch.arange(1, count + 1, device=seeds.device) * GAMMA
    return _shift(mix(start.unsqueeze(1) + steps), 1)


def mix(state: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64 bits."""
    state = (state ^ _shift(state, 30)) * FIRST_FACTOR
    state = (state ^ _shift(state, 27)) * SECOND_FACTOR
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, also where the sign bit is set."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
