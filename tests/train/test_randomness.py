import random

import numpy as np
import torch

from foveate.train.randomness import AUGMENT, MODEL, hashed, permutation, seeded, step_seed, uniform


def naive_hash(*keys: int) -> int:
    mask = 2**64 - 1
    state = 0
    for key in keys:
        state = ((state ^ key) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_hash_equals_whole_number_arithmetic():
    for keys in ((0,), (1, 2, 3), (5, 2**62, 17)):
        assert int(hashed(*keys)) == naive_hash(*keys)


def test_a_sample_draws_the_same_numbers_in_any_batch():
    alone, together = uniform(3, 10, [42], 5), uniform(3, 10, [7, 42, 9], 5)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(uniform(3, 11, [42], 5), alone)
    assert not torch.equal(uniform(4, 10, [42], 5), alone)


def test_draws_are_uniform():
    draws = uniform(0, 0, np.arange(20_000), 3)
    assert draws.min() >= 0 and draws.max() < 1
    assert torch.allclose(draws.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.01)
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.03


def test_permutations_are_complete_and_differ_by_epoch_and_seed():
    first = permutation(0, 0, 1000)
    assert sorted(first) == list(range(1000)) and not np.array_equal(first, np.arange(1000))
    assert np.array_equal(first, permutation(0, 0, 1000))
    assert not np.array_equal(first, permutation(0, 1, 1000))
    assert not np.array_equal(first, permutation(1, 0, 1000))


def test_step_seeds_differ_and_suit_torch():
    seeds = {step_seed(0, step, rank, purpose) for step in range(50) for rank in range(3) for purpose in (AUGMENT, MODEL)}
    assert len(seeds) == 300
    torch.Generator().manual_seed(max(seeds))


def test_seeded_block_repeats_and_leaves_the_generators_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with seeded(5):
        inside = draw()
    assert draw() == expected
    with seeded(5):
        assert draw() == inside
