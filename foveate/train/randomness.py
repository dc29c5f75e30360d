"""Random numbers as pure functions of integer keys: (seed, step, sample) always gives the same number, whoever asks and whenever."""

import random
from contextlib import contextmanager

import numpy as np
import torch

# First key of every draw, so that no two uses ever share their numbers.
ORDER, AUGMENT, MODEL, MIX = 1, 2, 3, 4

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed(*keys) -> np.ndarray:
    """Return 64 well-mixed bits for the given integer keys (SplitMix64's finaliser, chained over the keys).

    keys: integers or integer arrays that broadcast against each other.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(seed: int, step: int, samples, draws: int) -> torch.Tensor:
    """Return [len(samples), draws] numbers in [0, 1), a function of (seed, step, sample, draw) alone."""
    bits = hashed(AUGMENT, seed, step, np.asarray(samples)[:, None], np.arange(draws)[None, :])
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order in which epoch number `epoch` (0-based) visits `size` samples."""
    return np.argsort(hashed(ORDER, seed, epoch, np.arange(size)), kind="stable")


def step_seed(seed: int, step: int, rank: int = 0, purpose: int = MODEL) -> int:
    """Return a generator seed in [0, 2**63) for one training step on one rank."""
    return int(hashed(purpose, seed, step, rank) >> np.uint64(1))


@contextmanager
def seeded(seed: int):
    """Seed Python's, numpy's and torch's CPU generators inside the block and put back what they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
