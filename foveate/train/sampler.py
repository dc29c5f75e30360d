"""Which samples a step trains on: a pure function of (seed, global step), split among ranks."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from foveate.errors import FoveateError
from foveate.train.randomness import permutation


def rank_positions(batch_size: int, rank: int, world: int) -> np.ndarray:
    """Return the positions of the global batch that a rank works on.

    Position p and its mirror image batch_size - 1 - p stay on one rank, because mixup mixes exactly these pairs:
    so the ranks together compute what one process would. All ranks get equally many.
    """
    if batch_size % world or (world > 1 and batch_size % (2 * world)):
        raise FoveateError(
            f"a global batch of {batch_size} images on {world} processes",
            f"a multiple of {2 * world}",
            f"choose batch_size={max(1, round(batch_size / (2 * world))) * 2 * world} in the recipe",
        )
    positions = np.arange(batch_size)
    return positions[np.minimum(positions, batch_size - 1 - positions) % world == rank]


class StepSampler(Sampler):
    """Yields (step, sample indices) for every step from `start` to `stop`; each epoch is a fresh permutation.

    size: samples in the set; batch_size: the global batch (at most `size`); an incomplete last batch is left out.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1):
        self.size, self.batch_size, self.seed, self.start, self.stop = size, batch_size, seed, start, stop
        self.positions = rank_positions(batch_size, rank, world)
        self.steps_per_epoch = size // batch_size

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        order_epoch, order = -1, None
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, permutation(self.seed, epoch, self.size)
            yield step, order[place * self.batch_size + self.positions]
