import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.train.sampler import StepSampler, rank_positions


def test_every_epoch_visits_each_sample_once_in_a_new_order():
    steps = list(StepSampler(12, 4, seed=0, start=0, stop=6))
    assert [step for step, _ in steps] == list(range(6))
    first, second = (np.concatenate([indices for _, indices in steps[at : at + 3]]) for at in (0, 3))
    assert sorted(first) == sorted(second) == list(range(12))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("start", [1, 3, 5, 6])
def test_a_later_start_gives_the_rest_of_the_same_order(start):
    whole = list(StepSampler(13, 4, seed=7, start=0, stop=8))
    rest = list(StepSampler(13, 4, seed=7, start=start, stop=8))
    assert len(rest) == 8 - start
    for (step, indices), (other_step, others) in zip(rest, whole[start:], strict=True):
        assert step == other_step and np.array_equal(indices, others)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_global_batch(world):
    whole = list(StepSampler(24, 12, seed=1, start=0, stop=4))
    parts = [list(StepSampler(24, 12, 1, 0, 4, rank, world)) for rank in range(world)]
    for step, (_, indices) in enumerate(whole):
        shares = [part[step][1] for part in parts]
        assert all(len(share) == 12 // world for share in shares)
        assert sorted(np.concatenate(shares)) == sorted(indices)


def test_mixup_partners_stay_on_one_rank():
    for rank in range(2):
        positions = rank_positions(8, rank, 2)
        assert np.array_equal(7 - positions[::-1], positions)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(FoveateError) as caught:
        rank_positions(6, 0, 2)
    assert "6 images on 2 processes" in caught.value.given
    assert "multiple of 4" in caught.value.allowed and "batch_size=8" in caught.value.do
