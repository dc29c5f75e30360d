"""Linear CKA against the definition, and what it must not react to."""

import pytest
import torch
from naive import cka as naive

from foveate.nn.cka import centred_gram, cka_from_hsic, gram_hsic, linear_cka, unbiased_hsic


def related(images: int, seed: int = 0, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of features of the same images, alike to a degree; off centre."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 5, generator=g, dtype=torch.float64)
    return x + 3, x[:, :3] + noise * torch.randn(images, 3, generator=g, dtype=torch.float64) - 1


def test_equals_the_definition_in_float64():
    x, y = related(13)
    torch.testing.assert_close(linear_cka(x, y), naive.cka(x, y), rtol=1e-12, atol=1e-12)


def test_ignores_rotation_scale_and_shift_but_not_shuffling():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    assert abs(linear_cka(x, 3 * x @ rotation + 7) - 1) < 1e-12
    assert linear_cka(x, x[torch.randperm(40, generator=g)]) < 0.6


def test_positions_are_a_batch_dimension_and_constants_score_zero():
    g = torch.Generator().manual_seed(2)
    positions, final = torch.randn(4, 9, 5, generator=g), torch.randn(9, 5, generator=g)
    together = linear_cka(positions, final)
    assert together.shape == (4,)
    torch.testing.assert_close(together, torch.stack([linear_cka(p, final) for p in positions]))
    assert linear_cka(torch.ones(9, 5), final) == 0


def test_every_pair_of_gram_matrices_at_once():
    pairs = [related(11, seed) for seed in range(3)]
    k, l = (torch.stack([centred_gram(pair[side]) for pair in pairs]) for side in (0, 1))
    matrix = cka_from_hsic(gram_hsic(k, l), gram_hsic(k, k).diagonal(), gram_hsic(l, l).diagonal())
    assert matrix.shape == (3, 3)
    for i, (x, _) in enumerate(pairs):
        for j, (_, y) in enumerate(pairs):
            torch.testing.assert_close(matrix[i, j], naive.cka(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("images", [4, 5, 12])
def test_the_unbiased_estimate_equals_its_formula_centred_or_not(images):
    x, y = related(images)
    expected = naive.unbiased_hsic(x, y)
    for gram in (centred_gram, lambda t: t @ t.T):
        found = unbiased_hsic(gram(x)[None], gram(y)[None])
        torch.testing.assert_close(found[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_the_unbiased_estimate_is_zero_in_the_mean_where_nothing_is_shared():
    g = torch.Generator().manual_seed(3)
    draws = [[torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(2)] for _ in range(800)]
    k, l = (torch.stack([centred_gram(draw[side]) for draw in draws]) for side in (0, 1))
    unbiased = torch.stack([unbiased_hsic(a[None], b[None])[0, 0] for a, b in zip(k, l)])
    assert unbiased.mean().abs() < 3 * unbiased.std() / len(draws) ** 0.5
    assert (k * l).sum((-1, -2)).mean() > 10 * (k * l).sum((-1, -2)).std() / len(draws) ** 0.5, "the plain estimate is biased"


def test_a_constant_side_scores_zero():
    k, own = torch.zeros(1, 1), torch.tensor([1.0])
    assert cka_from_hsic(k, torch.zeros(1), own) == 0
    assert cka_from_hsic(torch.ones(1, 1), torch.tensor([-0.1]), own) == 0
