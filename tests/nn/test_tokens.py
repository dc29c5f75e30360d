"""The token stream: what it says of itself in its three forms."""

from dataclasses import replace

import torch

from foveate.nn.tokens import PACKAGE, PREFIX, dense, from_rows, with_all_live


def packed(kept: list[list[int]], packages: list[int], prefix: int = 1, slots: int = 4):
    """Images that keep these slots and have so many packages, handed over in the wrong order of images."""
    image, place = [], []
    for i in reversed(range(len(kept))):
        places = [PREFIX] * prefix + kept[i] + [PACKAGE] * packages[i]
        image += [i] * len(places)
        place += places
    rows = torch.arange(len(image), dtype=torch.float32)[:, None] + 100 * torch.tensor(image)[:, None]
    stream = dense(torch.zeros(len(kept), prefix + slots, 1), prefix, (2, slots // 2))
    return from_rows(stream, rows, torch.tensor(image), torch.tensor(place)), rows


def test_dense_tokens_are_prefix_then_patches_in_grid_order():
    tokens = dense(torch.zeros(2, 7, 3), 3, (2, 2))
    assert tokens.place.tolist() == [PREFIX] * 3 + [0, 1, 2, 3]
    assert not tokens.masked and not tokens.ragged and not tokens.pruned
    assert tokens.patches == slice(3, 7) and tokens.images == 2 and tokens.counts() == [7, 7]
    assert tokens.places().shape == (2, 7) and tokens.kept().all() and tokens.kept().shape == (2, 4)
    assert tokens.image_of_row().tolist() == [0] * 7 + [1] * 7
    assert dense(torch.zeros(2, 4, 3), 0, (2, 2)).place.tolist() == [0, 1, 2, 3]


def test_all_live_is_masked_with_ones_in_float32_or_wider():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        tokens = with_all_live(dense(torch.zeros(2, 5, 3, dtype=dtype), 1, (2, 2)))
        assert tokens.masked and tokens.pruned and tokens.live.dtype == expected and tokens.counts() == [5, 5]


def test_masked_tokens_count_what_lives():
    tokens = with_all_live(dense(torch.zeros(2, 5, 3), 1, (2, 2)))
    tokens.live[0, 2] = 0
    tokens.live[1, 3:] = 0
    assert tokens.counts() == [4, 3]
    assert tokens.kept().tolist() == [[True, False, True, True], [True, True, False, False]]


def test_unequal_images_become_ragged_one_after_the_other():
    tokens, rows = packed([[0, 2], [1], [0, 1, 3]], [1, 0, 0])
    assert tokens.ragged and tokens.pruned and tokens.lengths == (4, 2, 4) and tokens.images == 3
    assert tokens.counts() == [4, 2, 4]
    assert tokens.image_of_row().tolist() == [0] * 4 + [1] * 2 + [2] * 4
    assert tokens.place.tolist() == [PREFIX, 0, 2, PACKAGE, PREFIX, 1, PREFIX, 0, 1, 3]
    assert (tokens.x[:, 0] // 100).tolist() == [0] * 4 + [1] * 2 + [2] * 4
    assert tokens.kept().tolist() == [[True, False, True, False], [False, True, False, False], [True, True, False, True]]


def test_equal_images_become_uniform():
    tokens, _ = packed([[0, 2], [1, 3]], [1, 1])
    assert not tokens.ragged and tokens.x.shape == (2, 4, 1) and tokens.packages == 1 and tokens.patches == slice(1, 3)
    assert tokens.places().tolist() == [[PREFIX, 0, 2, PACKAGE], [PREFIX, 1, 3, PACKAGE]] and tokens.pruned


def test_equal_lengths_with_unequal_packages_stay_ragged():
    """Otherwise `packages` could not say where the patches end."""
    tokens, _ = packed([[0, 2], [1]], [0, 1])
    assert tokens.ragged and tokens.lengths == (3, 3)


def test_one_image_is_always_uniform():
    tokens, _ = packed([[0, 3]], [2])
    assert not tokens.ragged and tokens.packages == 2 and tokens.place.tolist() == [[PREFIX, 0, 3, PACKAGE, PACKAGE]]


def test_with_x_changes_nothing_else():
    tokens, _ = packed([[0, 2], [1]], [1, 0])
    other = tokens.with_x(tokens.x + 1)
    assert torch.equal(other.x, tokens.x + 1) and other.lengths == tokens.lengths and other.place is tokens.place


def test_selected_images_keep_their_own_tokens_in_every_form():
    ragged, _ = packed([[0, 2], [1], [0, 1, 3]], [1, 0, 0])
    some = ragged.select(torch.tensor([0, 2]))
    assert some.images == 2 and (some.x[..., 0] // 100).flatten().tolist() == [0] * 4 + [2] * 4
    assert some.kept().tolist() == [[True, False, True, False], [True, True, False, True]]
    assert some.counts() == [4, 4] and some.ragged, "equal lengths with unequal packages stay ragged"
    alone = ragged.select(torch.tensor([1]))
    assert not alone.ragged and alone.x.shape == (1, 2, 1) and alone.places().tolist() == [[PREFIX, 1]]
    uniform, _ = packed([[0, 2], [1, 3], [2, 3]], [1, 1, 1])
    assert uniform.select(torch.tensor([1, 2])).places().tolist() == [[PREFIX, 1, 3, PACKAGE], [PREFIX, 2, 3, PACKAGE]]
    masked = with_all_live(dense(torch.arange(15.0).view(3, 5, 1), 1, (2, 2)))
    masked.live[2, 4] = 0
    last = masked.select(torch.tensor([2]))
    assert last.x.flatten().tolist() == [10, 11, 12, 13, 14] and last.live.tolist() == [[1, 1, 1, 1, 0]] and last.place.dim() == 1


def test_what_an_image_carries_beside_its_tokens_goes_with_it():
    tokens = replace(dense(torch.zeros(3, 5, 1), 1, (2, 2)), beside=torch.arange(3.0)[:, None])
    assert tokens.select(torch.tensor([0, 2])).beside.tolist() == [[0.0], [2.0]]
