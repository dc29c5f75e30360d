"""Linear CKA against the definition, and what it must not react to."""

import torch

from foveate.nn.cka import linear_cka


def naive_cka(x, y):
    """HSIC with linear kernels, spelled out: tr(K H L H) / sqrt(tr(K H K H) tr(L H L H))."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - torch.full((n, n), 1 / n, dtype=x.dtype)
    k, l = x @ x.T, y @ y.T
    hsic = lambda a, b: torch.trace(a @ h @ b @ h)
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()


def test_equals_the_definition_in_float64():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(13, 5, generator=g, dtype=torch.float64)
    y = x[:, :3] + 0.5 * torch.randn(13, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(linear_cka(x, y), naive_cka(x, y), rtol=1e-12, atol=1e-12)


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
