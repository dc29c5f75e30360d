"""SPViT's selector and its loss: the paper's sizes, and float64 loops over Eqs. 1-6 and 11."""

import pytest
import timm
import torch

import foveate as fv
from foveate.methods.spvit.cost import selector_params
from foveate.methods.spvit.layers import Selector
from foveate.methods.spvit.losses import ratio_loss
from naive import pruning, selector as naive

D = torch.float64
SIZES = [(24, 3), (20, 1), (14, 2), (30, 5)]


def randomised(dim: int, heads: int) -> Selector:
    selector = Selector(dim, heads).double()
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return selector


def pool(live):
    """Mean over kept tokens of features [H, N, e]."""
    return lambda f: (live[:, None] * f).sum(-2, keepdim=True) / live.sum()


@pytest.mark.parametrize("dim, heads", SIZES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_scores_and_gradients_are_those_of_the_equations(dim, heads, tokens):
    selector, x = randomised(dim, heads), torch.randn(tokens, dim, dtype=D, requires_grad=True)
    live = torch.rand(tokens, dtype=D, requires_grad=True)
    weights = dict(selector.named_parameters())
    ours, theirs = selector(x, pool(live)), naive.selector(weights, x, live)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves, weight = [x, live, *weights.values()], torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weight).sum(), leaves)
    other = torch.autograd.grad((theirs * weight).sum(), leaves)
    for name, a, b in zip(["x", "live", *weights], mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda m: f"{name}: {m}")


def test_scores_are_probabilities_in_float32_or_wider():
    for dtype, expected in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (D, D)):
        selector = Selector(24, 3).to(dtype)
        chance = selector(torch.randn(2, 5, 24, dtype=dtype) * 10, lambda f: f.mean(-2, keepdim=True))
        assert chance.shape == (2, 5, 2) and chance.dtype == expected and (chance >= 0).all()
        torch.testing.assert_close(chance.sum(-1), torch.ones(2, 5, dtype=expected), rtol=0, atol=1e-6)


def test_heads_have_weights_of_their_own():
    selector, x = randomised(24, 3), torch.randn(5, 24, dtype=D)
    t, a = selector.head_scores(x, lambda f: f.mean(-2, keepdim=True))
    with torch.no_grad():
        selector.score.bias[1, 0] += 1
    changed, _ = selector.head_scores(x, lambda f: f.mean(-2, keepdim=True))
    assert t.shape == (3, 5, 2) and a.shape == (5, 3)
    assert torch.equal(t[[0, 2]], changed[[0, 2]]) and not torch.equal(t[1], changed[1])


def test_local_and_global_features_share_one_layer():
    names = {name.split(".")[0] for name, _ in Selector(24, 3).named_parameters()}
    assert names == {"norm", "feature", "hidden1", "hidden2", "score", "squeeze", "excite"}


def test_a_fresh_selector_is_undecided_and_seeded():
    torch.manual_seed(3)
    one = Selector(24, 3)
    torch.manual_seed(3)
    other = Selector(24, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    chance = one(torch.randn(100, 24), lambda f: f.mean(-2, keepdim=True))
    assert 0.2 < chance[:, 0].mean() < 0.8


# sizes


def test_a_selector_of_deit_small_has_the_papers_parameters():
    assert sum(p.numel() for p in Selector(384, 6).parameters()) == 29_145


@pytest.mark.parametrize("dim, heads", [*SIZES, (384, 6), (192, 3), (320, 5), (144, 3)])
def test_counted_parameters_are_the_real_ones(dim, heads):
    assert sum(p.numel() for p in Selector(dim, heads).parameters()) == selector_params(dim, heads)


@pytest.mark.parametrize("after, millions", [((6, 9), 22.109), ((3, 6, 9), 22.138), ((3, 5, 7, 9), 22.167)])
def test_deit_small_with_selectors_has_the_papers_parameters(after, millions):
    with torch.device("meta"):
        base = timm.create_model("deit_small_patch16_224")
    fast = fv.adapt(base, fv.Plan([fv.SPViT(after=after, keep=[0.9 ** (i + 1) for i in range(len(after))])]))
    assert round(sum(p.numel() for p in fast.parameters()) / 1e6, 3) == millions
    assert {p.device.type for p in fast.parameters()} == {"meta"}


# the loss


@pytest.mark.parametrize("selectors", [1, 3])
def test_the_ratio_loss_and_its_gradient_are_eq_11(selectors):
    decisions = [(torch.rand(4, 6) < 0.5).to(D).requires_grad_() for _ in range(selectors)]
    keep = [0.9 - 0.2 * i for i in range(selectors)]
    ours, theirs = ratio_loss([d.mean() for d in decisions], keep), pruning.ratio_loss(decisions, [1 - k for k in keep])
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, decisions), torch.autograd.grad(theirs, decisions)):
        torch.testing.assert_close(a, b)
    assert ratio_loss([torch.tensor(k) for k in keep], keep) == 0
