"""Softmax attention in its three forms against float64 loops."""

import math

import pytest
import torch

from foveate.nn.attention import attend, dense_attention, masked_attention, policy_softmax
from foveate.nn.tokens import Tokens, dense, from_rows, with_all_live
from naive import vit as naive

D = torch.float64


def scores_and_live(n: int, m: int, dtype=D):
    # A dropped key more than LOUDEST_DEAD_KEY above the live ones has its gradient bounded: none of these is.
    scores = torch.randn(2, 3, n, m, dtype=dtype).clamp(-1.5, 1.5)
    live = (torch.rand(2, m) < 0.6).to(dtype)
    live[:, 0] = 1
    return scores, live


@pytest.mark.parametrize("n, m", [(2, 2), (5, 5), (4, 7)])
def test_policy_softmax_and_its_gradients_are_the_naive_ones(n, m):
    scores, live = scores_and_live(n, m)
    leaves = scores.requires_grad_(), live.requires_grad_()
    ours = policy_softmax(scores, live)
    theirs = torch.stack([torch.stack([naive.policy_softmax(scores[b, h], live[b]) for h in range(3)]) for b in range(2)])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, other in zip(torch.autograd.grad((ours * weight).sum(), leaves), torch.autograd.grad((theirs * weight).sum(), leaves)):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_dead_key_counts_for_itself_only_and_its_decision_still_gets_a_gradient():
    scores, live = torch.randn(1, 1, 4, 4, dtype=D), torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=D, requires_grad=True)
    weights = policy_softmax(scores, live)
    assert (weights[0, 0, [0, 2, 3], 1] == 0).all() and weights[0, 0, 1, 1] > 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 4, dtype=D))
    without = scores[..., [0, 2, 3], :][..., [0, 2, 3]].softmax(-1)
    torch.testing.assert_close(weights[..., [0, 2, 3], :][..., [0, 2, 3]], without)
    weights[0, 0, 0, 0].backward()
    assert live.grad[0, 1] < 0, "a key that would take weight away pulls its decision down"


def test_partial_weights_scale_a_key():
    live = torch.tensor([[1.0, 0.25, 1.0]], dtype=D)
    weights = policy_softmax(torch.zeros(1, 1, 3, 3, dtype=D), live)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([1, 0.25, 1], dtype=D) / 2.25)
    torch.testing.assert_close(weights[0, 0, 1], torch.tensor([1, 1, 1], dtype=D) / 3)


def test_policy_softmax_works_in_float32_or_wider():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (D, D)):
        scores, live = scores_and_live(5, 5, dtype)
        weights = policy_softmax(scores, live)
        assert weights.dtype == expected
        torch.testing.assert_close(weights, policy_softmax(scores.double(), live.double()).to(expected), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_loud_dropped_key_is_bounded_and_no_value_changes():
    live = torch.tensor([[1.0, 0.0, 1.0]], dtype=D, requires_grad=True)
    gradients = {}
    for loud in (2.0, 3.0, 9.0, 40.0):
        scores = torch.zeros(1, 1, 3, 3, dtype=D)
        scores[..., 0, 1] = loud
        weights = policy_softmax(scores, live)
        torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.5, 0.0, 0.5], dtype=D))
        gradients[loud] = float(torch.autograd.grad(weights[0, 0, 0, 0], live)[0][0, 1])
    assert gradients[2.0] == pytest.approx(-math.exp(2) / 4), "exact below the bound"
    assert gradients[3.0] == gradients[9.0] == gradients[40.0] == pytest.approx(-math.exp(3) / 4)


def test_dead_keys_that_score_far_above_the_live_ones_do_no_harm():
    scores = torch.zeros(1, 1, 3, 3)
    scores[..., 1] = 500.0
    live = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    scores.requires_grad_()
    weights = policy_softmax(scores, live)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.5, 0.0, 0.5]))
    weights[0, 0, 0, 0].backward()
    assert torch.isfinite(scores.grad).all() and torch.isfinite(live.grad).all()


def test_masked_attention_adds_its_bias():
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=D) for _ in range(3))
    bias, live = torch.randn(1, 3, 5, 5, dtype=D), torch.ones(2, 5, dtype=D)
    expected = ((q * 0.3) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    torch.testing.assert_close(masked_attention(q, k, v, live, 0.3, bias), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_dense_attention_allows_values_of_another_width(fused):
    q, k, v = torch.randn(2, 3, 5, 4, dtype=D), torch.randn(2, 3, 7, 4, dtype=D), torch.randn(2, 3, 7, 6, dtype=D)
    torch.testing.assert_close(dense_attention(q, k, v, 0.4, fused), (q @ k.transpose(-2, -1) * 0.4).softmax(-1) @ v)


def test_attention_of_ragged_masked_and_uniform_tokens_is_one():
    """Three images of 6 tokens that lost 0, 2 and 3 of them."""
    lost = [[], [2, 4], [1, 3, 5]]
    q, k, v = (torch.randn(3, 6, 2, 4, dtype=D) for _ in range(3))
    stream = dense(torch.zeros(3, 6, 8, dtype=D), 1, (1, 5))
    live = torch.ones(3, 6, dtype=D)
    for image, gone in enumerate(lost):
        live[image, gone] = 0
    masked = attend(q, k, v, Tokens(stream.x, 1, (1, 5), stream.place, live=live), 0.5)
    alive = live.flatten() > 0
    image = stream.image_of_row()[alive]
    ragged = from_rows(stream, stream.x.flatten(0, 1)[alive], image, stream.places().flatten()[alive])
    assert ragged.ragged and ragged.lengths == (6, 4, 3)
    ours = attend(*(t.flatten(0, 1)[alive] for t in (q, k, v)), ragged, 0.5)
    torch.testing.assert_close(ours, masked.flatten(0, 1)[alive])
    for i, gone in enumerate(lost):
        rows = [n for n in range(6) if n not in gone]
        one = dense(torch.zeros(1, len(rows), 8, dtype=D), 1, (1, len(rows) - 1))
        torch.testing.assert_close(attend(q[i : i + 1, rows], k[i : i + 1, rows], v[i : i + 1, rows], one, 0.5)[0], masked[i, rows])


def test_all_live_is_plain_softmax_attention():
    q, k, v = (torch.randn(2, 6, 2, 4, dtype=D) for _ in range(3))
    stream = dense(torch.zeros(2, 6, 8, dtype=D), 1, (1, 5))
    torch.testing.assert_close(attend(q, k, v, with_all_live(stream), 0.5), attend(q, k, v, stream, 0.5))
