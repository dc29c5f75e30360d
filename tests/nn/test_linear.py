"""The comparison attentions against double loops; removal of keys, half precision, Performer's error."""

import pytest
import torch

from foveate.nn.linear import efficient, linear_transformer, linformer, orthogonal_features, performer
from naive import linear as naive

D = torch.float64
E, F = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=D)
OMEGA = orthogonal_features(6, 3, torch.Generator().manual_seed(0)).double()


def over_heads(function):
    """A function of one head, for every image and head."""
    def batch(q, k, v, weights):
        weights = q.new_ones(2, 1, k.shape[2]) if weights is None else weights
        return torch.stack([torch.stack([function(q[b, h], k[b, h], v[b, h], weights[b, 0]) for h in range(3)]) for b in range(2)])
    return batch


# name: (ours, naive, ours after removing all keys but `kept`)
ATTENTIONS = {
    "linformer": (lambda q, k, v, w: linformer(q, k, v, 0.4, E, F, w),
                  over_heads(lambda q, k, v, w: naive.linformer(q, k, v, 0.4, E, F, w)),
                  lambda q, k, v, kept: linformer(q, k, v, 0.4, E[:, kept], F[:, kept])),
    "performer": (lambda q, k, v, w: performer(q, k, v, 0.4, OMEGA, w),
                  over_heads(lambda q, k, v, w: naive.performer(q, k, v, 0.4, OMEGA, w)),
                  lambda q, k, v, kept: performer(q, k, v, 0.4, OMEGA)),
    "linear transformer": (linear_transformer, over_heads(naive.linear_transformer), lambda q, k, v, kept: linear_transformer(q, k, v)),
    "efficient": (efficient, over_heads(naive.efficient), lambda q, k, v, kept: efficient(q, k, v)),
}


def inputs(dtype=D):
    live = torch.rand(2, 1, 9, dtype=D)
    live[:, :, 1::3] = 0
    live[:, :, 0] = 1
    leaves = (torch.randn(2, 3, 5, 3, dtype=D), torch.randn(2, 3, 9, 3, dtype=D), torch.randn(2, 3, 9, 6, dtype=D), live)
    return [t.to(dtype).requires_grad_() for t in leaves]


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_are_the_naive_ones(name, weighted):
    ours, theirs, _ = ATTENTIONS[name]
    leaves = inputs()[: 4 if weighted else 3]
    q, k, v, weights = leaves if weighted else (*leaves, None)
    with torch.no_grad():
        # Above the loudest live key by more than LOUDEST_DEAD_KEY a decision's gradient is bounded: none is here.
        k.clamp_(-1.2, 1.2)
    mine, other = ours(q, k, v, weights), theirs(q, k, v, weights)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(mine)
    for a, b in zip(*(torch.autograd.grad((z * direction).sum(), leaves) for z in (mine, other))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_weights_of_zero_and_one_remove_keys(name):
    ours, _, removed = ATTENTIONS[name]
    q, k, v, _ = (t.detach() for t in inputs())
    kept = [0, 3, 4, 8]
    live = torch.zeros(2, 1, 9, dtype=D)
    live[..., kept] = 1
    loud = torch.where(live[..., None] > 0, k, 300.0)
    torch.testing.assert_close(ours(q, loud, v, live), removed(q, k[:, :, kept], v[:, :, kept], kept), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["performer", "linear transformer", "efficient"])
def test_one_live_key_gives_its_value_and_none_gives_zero(name):
    q, k, v, _ = inputs()
    live = torch.zeros(2, 1, 9, dtype=D)
    live[0, 0, 4] = 1
    live.requires_grad_()
    z = ATTENTIONS[name][0](q, k, v, live)
    torch.testing.assert_close(z[0], v[0, :, 4:5].expand(3, 5, 6))
    assert (z[1] == 0).all()
    z.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v, live))


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("dtype, within", [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_half_precision_is_near_float64(name, dtype, within):
    q, k, v, live = (t.detach() for t in inputs(dtype))
    ours, exact = (ATTENTIONS[name][0](q, k, v, live), ATTENTIONS[name][0](q.double(), k.double(), v.double(), live.double()))
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().max() < within * exact.abs().max()


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_activations_stay_finite(name, dtype):
    """Queries, keys of 1e4 and both signs: where exponents run out of range there must be no 0 / 0."""
    leaves = [t.detach().mul(size).clamp(-1e4, 1e4).to(dtype).requires_grad_() for t, size in zip(inputs(), (1e4, 1e4, 1e3, 1))]
    for weights in (leaves[3], None):
        z = ATTENTIONS[name][0](*leaves[:3], weights)
        assert torch.isfinite(z).all()
        if name != "linformer":
            assert z.abs().max() <= leaves[2].abs().max() * 1.01, "a weighted mean of values"
        gradients = torch.autograd.grad(z.float().square().mean().sqrt(), leaves[:3])
        assert all(torch.isfinite(g).all() for g in gradients)


def test_all_queries_far_below_zero_still_divide_by_something():
    """elu(x) + 1 underflows there in every channel."""
    q, k, v = torch.full((1, 1, 2, 3), -1e4), torch.randn(1, 1, 4, 3), torch.randn(1, 1, 4, 2)
    z = linear_transformer(q, k, v)
    exact = linear_transformer(torch.full((1, 1, 2, 3), -20.0, dtype=D), k.double(), v.double())
    torch.testing.assert_close(z.double(), exact, rtol=1e-5, atol=1e-6)


# Performer's features


def test_features_are_orthogonal_in_groups_and_as_long_as_normal_vectors():
    features = orthogonal_features(20, 8, torch.Generator().manual_seed(1))
    assert features.shape == (20, 8) and features.dtype == torch.float32
    for group in features.split(8):
        directions = group / group.norm(dim=1, keepdim=True)
        torch.testing.assert_close(directions @ directions.T, torch.eye(len(group)), rtol=0, atol=1e-5)
    assert torch.equal(features, orthogonal_features(20, 8, torch.Generator().manual_seed(1)))
    many = orthogonal_features(8000, 8, torch.Generator().manual_seed(2))
    assert many.norm(dim=1).square().mean() == pytest.approx(8, rel=0.03)
    assert many.mean(0).abs().max() < 0.05 and (many.T @ many / 8000 - torch.eye(8)).abs().max() < 0.06


def test_performer_comes_nearer_to_softmax_with_more_features():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 8, generator=generator, dtype=D) * size for size in (0.5, 0.5, 1))
    exact = (q @ k.mT * 8**-0.5).softmax(-1) @ v

    def error(r):
        draws = [performer(q, k, v, 8**-0.5, orthogonal_features(r, 8, generator)) - exact for _ in range(10)]
        return float(torch.stack(draws).square().mean().sqrt())

    errors = [error(r) for r in (16, 64, 256, 1024)]
    assert all(after < 0.7 * before for before, after in zip(errors, errors[1:])), "about half with four times the features"
    assert errors[-1] < 0.1 * float(exact.square().mean().sqrt())
