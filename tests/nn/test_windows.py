"""How a grid falls into windows, against timm's roll, padding and partition."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition

from foveate.nn.prune import prune_rows
from foveate.nn.tokens import PACKAGE, dense
from foveate.nn.windows import partition, window_keys


@pytest.mark.parametrize("grid, window, shift", [((8, 8), (4, 4), (0, 0)), ((8, 8), (4, 4), (2, 2)), ((11, 6), (4, 4), (2, 0)),
                                                 ((3, 5), (4, 7), (2, 3)), ((7, 7), (7, 7), (0, 0)), ((1, 1), (2, 2), (1, 1))])
def test_windows_hold_the_slots_that_timm_puts_there(grid, window, shift):
    windows = partition(grid, window, shift, torch.device("cpu"))
    numbered = torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)
    rolled = torch.roll(numbered, (-shift[0], -shift[1]), (1, 2))
    padded = F.pad(rolled, (0, 0, 0, -grid[1] % window[1], 0, -grid[0] % window[0]))
    assert torch.equal(windows.slots, window_partition(padded, window).flatten(1) - 1)
    assert windows.padded == bool((windows.slots < 0).any())
    assert torch.equal(windows.slots.flatten()[windows.position], torch.arange(grid[0] * grid[1]))


def test_keys_of_images_with_different_counts():
    tokens = dense(torch.arange(32.0).view(2, 16, 1), 0, (4, 4))
    keep = torch.rand(32, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:16] = True  # nothing dropped: the first image has no package
    tokens = prune_rows(tokens, keep, torch.ones(32), True)
    windows = partition((4, 4), (2, 2), (1, 1), torch.device("cpu"))
    keys = window_keys(tokens, windows)
    assert tokens.ragged and keys.packages == 1 and keys.rows.shape == (2, 4, 5)
    for image in range(2):
        for window in range(4):
            expected = sorted(s for s in windows.slots[window].tolist() if keep[16 * image + s])
            rows = keys.rows[image, window][keys.weights[image, window] > 0]
            assert sorted(tokens.place[rows].tolist()) == ([PACKAGE] if image else []) + expected
            values = tokens.x[rows, 0][tokens.place[rows] >= 0]
            assert sorted(values.tolist()) == [16.0 * image + s for s in expected]
