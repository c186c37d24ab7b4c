"""Queueing theory, by the book: what a simulation must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def erlang_c(servers: int, load: float) -> float:
    """The probability that a request waits, in M/M/servers; load: arrivals a second x seconds of service."""
    terms = [load**number / math.factorial(number) for number in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - load / servers)
    return last / (sum(terms) + last)


def mean_wait(rate: float, seconds: float, servers: int = 1, variation: float = 1.0) -> float:
    """In M/G/servers, by Allen and Cunneen (Allen, Probability, Statistics and Queueing Theory, 1990): Erlang's wait,
    times (1 + variation) / 2. variation: of the service times, their squared coefficient of variation. Exact for one
    server (Pollaczek and Khinchine) and for exponential times."""
    load = rate * seconds
    return erlang_c(servers, load) * seconds / (servers - load) * (1 + variation) / 2


def mean_wait_of_batches(rate: float, seconds: Callable[[int], float], max_batch: int) -> float:
    """One server that takes all who wait, up to max_batch, of constant times by batch (Bailey, J. R. Stat. Soc. B 1954;
    Neuts, Ann. Math. Stat. 1967): the Markov chain of how many wait as a batch ends, then Little's law."""
    states = 200
    arrivals = {size: _poisson(rate * seconds(size), states) for size in range(1, max_batch + 1)}
    moves, waiting_seconds, cycle = np.zeros((states, states)), np.zeros(states), np.zeros(states)
    for waiting in range(states):
        size, rest = min(max(waiting, 1), max_batch), max(waiting - max_batch, 0)
        moves[waiting, rest:] = arrivals[size][: states - rest]
        moves[waiting, -1] += 1 - moves[waiting].sum()
        time = seconds(size)
        waiting_seconds[waiting] = time * rest + rate * time**2 / 2
        cycle[waiting] = time + (1 / rate if not waiting else 0)  # until the first one comes
    balance = np.vstack([moves.T - np.eye(states), np.ones(states)])
    share = np.linalg.lstsq(balance, np.append(np.zeros(states), 1), rcond=None)[0]
    return float(share @ waiting_seconds / (share @ cycle) / rate)


def mean_seconds_of_two_choices(utilisation: float, seconds: float) -> float:
    """In many M/M/1, each request at the shorter of two queues drawn by chance (Mitzenmacher 2001): the share of queues
    of at least n is utilisation ** (2 ** n - 1)."""
    return sum(utilisation ** (2**number - 1) for number in range(1, 20)) / utilisation * seconds


def _poisson(mean: float, size: int) -> np.ndarray:
    numbers = np.arange(size)
    return np.exp(numbers * math.log(mean) - mean - np.array([math.lgamma(number + 1) for number in numbers]))
