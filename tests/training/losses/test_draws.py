"""The stateless random numbers: known answers, uniformity, independence of seeds, streams and batches."""

from __future__ import annotations

import torch
from scipy import stats

from training.losses import draws

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """SplitMix64's output function in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def uniform(seeds: torch.Tensor, count: int, stream: int) -> torch.Tensor:
    """The keys' upper 24 bits as float32 in [0, 1)."""
    return (draws.keys(seeds, count, stream) >> 39).float() * 2.0**-24


def test_the_published_sequence() -> None:
    """The first outputs for seed 1234567 of the reference implementation (prng.di.unimi.it, splitmix64.c)."""
    states = torch.arange(1, 6) * draws.GAMMA + 1234567
    found = [int(value) & MASK for value in draws.mix(states)]
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_keys_in_exact_integers() -> None:
    seeds = [0, 1, 2**63 - 1]
    found = draws.keys(torch.tensor(seeds), 4, draws.ROI_STREAM)
    for row, seed in zip(found.tolist(), seeds, strict=True):
        start = splitmix((splitmix(seed) + draws.ROI_STREAM) & MASK)
        assert row == [splitmix((start + (i + 1) * 0x9E3779B97F4A7C15) & MASK) >> 1 for i in range(4)]


def test_uniformity() -> None:
    """Kolmogorov-Smirnov along one image's draws, and over the images for one draw; seeds that follow each other."""
    values = uniform(torch.arange(2000), 2000, 0).double().numpy()
    assert stats.kstest(values[7], "uniform").pvalue > 1e-3
    assert stats.kstest(values[:, 7], "uniform").pvalue > 1e-3
    assert abs(values.mean() - 0.5) < 1e-3


def test_seeds_streams_and_places_are_independent() -> None:
    values = torch.stack([uniform(torch.arange(50), 4000, stream) for stream in range(3)]).flatten(0, 1)
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    assert correlation.abs().max() < 6 / 4000**0.5
    lagged = torch.corrcoef(torch.stack([values[0, lag : 3900 + lag] for lag in range(20)])) - torch.eye(20)
    assert lagged.abs().max() < 5 / 3900**0.5


def test_the_first_numbers_do_not_depend_on_the_others() -> None:
    alone = draws.keys(torch.tensor([9]), 10, 2)
    among = draws.keys(torch.tensor([3, 9, 4]), 500, 2)
    assert torch.equal(among[1, :10], alone[0])


def test_no_two_of_a_large_images_keys_are_equal() -> None:
    keys = draws.keys(torch.tensor([0]), 270_000, draws.RPN_STREAM)
    assert keys.min() >= 0 and len(keys.unique()) == 270_000
