"""Sanger's predictor and the sparse softmax against loops; ranges, thresholds, dead keys."""

import pytest
import torch

from foveate.nn.attention import policy_softmax
from foveate.nn.sparse import density, full_softmax, predicted_attention, quantise, ranges, sparse_attention, sparse_helper, strong_mask
from naive import linear as naive

D = torch.float64


def queries_keys(n, m, d=4, dead=True):
    q, k = torch.randn(2, 3, n, d, dtype=D) * 2, torch.randn(2, 3, m, d, dtype=D) * 2
    live = torch.ones(2, 1, m, dtype=D)
    if dead and m > 1:
        live[0, 0, 1::2] = 0
        live[1, 0, 2::3] = 0
    return q, k, live


# the quantiser


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantise_takes_the_nearest_level(bits):
    x = torch.randn(3, 50, dtype=D)
    low, high = torch.tensor(-1.5, dtype=D), torch.tensor(1.0, dtype=D)
    rounded = quantise(x, low, high, bits)
    expected = [[naive.quantised(float(e), -1.5, 1.0, bits) for e in row] for row in x]
    torch.testing.assert_close(rounded, torch.tensor(expected, dtype=D), rtol=1e-14, atol=1e-14)
    assert len(rounded.unique()) <= 2**bits and rounded.min() >= -1.5 and rounded.max() <= 1.0
    assert (rounded - x).abs()[(x > -1.5) & (x < 1)].max() <= 2.5 / (2**bits - 1) / 2 + 1e-12


def test_quantise_passes_the_gradient_straight_through_and_gives_its_range_none():
    x = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    (quantise(x, low, high) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0] and low.grad is None and high.grad is None


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_a_constant_stays_what_it_is(value):
    x = torch.full((1, 2, 5, 3), value, requires_grad=True)
    rounded = quantise(x, *ranges(x))
    assert (rounded == value).all()
    rounded.sum().backward()
    assert (x.grad == 1).all()


# ranges


def test_ranges_are_those_of_each_image_and_head_over_live_tokens():
    _, k, live = queries_keys(5, 9)
    low, high = ranges(k, live)
    assert low.shape == high.shape == (2, 3, 1, 1)
    for b in range(2):
        for h in range(3):
            alive = k[b, h][live[b, 0] > 0]
            assert low[b, h] == alive.min() and high[b, h] == alive.max()
    alone = ranges(k[1:], live[1:])
    assert torch.equal(low[1:], alone[0]) and torch.equal(high[1:], alone[1]), "a batch of one equals a batch of n"


def test_one_range_for_the_whole_tensor():
    _, k, live = queries_keys(5, 9)
    low, high = ranges(k, live, over="tensor")
    alive = k.transpose(1, 2)[live[:, 0] > 0]
    assert low.shape == high.shape == (1, 1, 1, 1) and low == alive.min() and high == alive.max()
    assert ranges(k, over="tensor")[0] == k.min()


def test_ranges_without_live_tokens_are_finite():
    k, live = torch.randn(2, 3, 5, 4), torch.ones(2, 1, 5)
    live[1] = 0
    low, high = ranges(k, live)
    assert (low[1] == 0).all() and (high[1] == 0).all() and (low[0] < high[0]).all()
    mask = strong_mask(k, k, 0.5, 0.1, live)
    assert mask[0].any() and not mask[1].any()
    assert torch.isfinite(predicted_attention(k, k, 0.5, live)).all()


# the mask


@pytest.mark.parametrize("threshold", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("n, m", [(6, 6), (4, 9), (1, 1)])
def test_the_mask_is_the_naive_one(n, m, threshold):
    q, k, live = queries_keys(n, m)
    bias = torch.randn(3, n, m, dtype=D)
    mask = strong_mask(q, k, 0.5, threshold, live, bias=bias)
    assert mask.dtype == torch.bool and mask.shape == (2, 3, n, m)
    for b in range(2):
        for h in range(3):
            assert torch.equal(mask[b, h], naive.strong(q[b, h], k[b, h], 0.5, threshold, live[b, 0], 4, bias[h]))
    assert mask.any() and not (mask & (live <= 0)[..., None, :]).any(), "dead keys are never in the mask"


def test_dead_keys_do_not_change_the_mask_of_live_ones():
    q, k, live = queries_keys(6, 6)
    loud = torch.where(live[..., None] > 0, k, 100.0)
    mask = strong_mask(torch.where(live[..., None] > 0, q, -100.0), loud, 0.5, 0.2, live)
    for b in range(2):
        kept = (live[b, 0] > 0).nonzero()[:, 0]
        alone = strong_mask(q[b : b + 1, :, kept], k[b : b + 1, :, kept], 0.5, 0.2)
        assert torch.equal(mask[b][:, kept][:, :, kept], alone[0])


def test_frozen_ranges_are_used():
    q, k, live = queries_keys(6, 6, dead=False)
    assert torch.equal(strong_mask(q, k, 0.5, 0.2, q_range=ranges(q), k_range=ranges(k)), strong_mask(q, k, 0.5, 0.2))
    nothing = (torch.zeros(()), torch.zeros(()))
    assert not strong_mask(q, k, 0.5, 0.2, q_range=nothing, k_range=nothing).any(), "all scores are zero: 1/6 everywhere"
    assert strong_mask(q, k, 0.5, 0.16, q_range=nothing, k_range=nothing).all()


def test_edges_of_the_threshold():
    same = torch.ones(1, 1, 4, 2)
    assert not strong_mask(same, same, 0.5, 0.25).any(), "equal to T is not above it"
    assert strong_mask(same, same, 0.5, 0.2499).all()
    q, k, _ = queries_keys(8, 8)
    assert not strong_mask(q * 100, k * 100, 0.5, 1.0).any(), "T = 1: nothing is left"
    one = torch.zeros(1, 1, 8)
    one[..., 3] = 1
    alone = strong_mask(q.float(), k.float(), 0.5, 0.999, one)
    assert alone[..., 3].all() and alone.sum() == 2 * 3 * 8, "the only live key has the whole row"
    counts = [int(strong_mask(q, k, 0.5, t).sum()) for t in (0.002, 0.02, 0.2, 0.5, 0.9)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    assert strong_mask(q, k, 0.5, 0.5).sum(-1).max() <= 1 and strong_mask(q, k, 0.5, 0.2).sum(-1).max() <= 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_activations_in_half_precision(dtype):
    q, k = (torch.randn(2, 3, 20, 8).clamp(-1, 1).mul(1e4).to(dtype) for _ in range(2))
    prediction = predicted_attention(q, k, 0.35)
    assert prediction.dtype == torch.float32 and torch.isfinite(prediction).all()
    assert torch.equal(strong_mask(q, k, 0.35, 0.5), strong_mask(q.double(), k.double(), 0.35, 0.5))


def test_the_prediction_has_a_straight_through_gradient():
    q, k, live = queries_keys(5, 5)
    q, k = q.requires_grad_(), k.requires_grad_()
    rounded = [quantise(t, *ranges(t, live)).detach().requires_grad_() for t in (q, k)]
    direction = torch.randn(2, 3, 5, 5, dtype=D)
    mine = torch.autograd.grad((predicted_attention(q, k, 0.5, live) * direction).sum(), (q, k))
    exact = (rounded[0] @ rounded[1].mT * 0.5).masked_fill(live[..., None, :] <= 0, -torch.inf).softmax(-1)
    for a, b in zip(mine, torch.autograd.grad((exact * direction).sum(), rounded)):
        torch.testing.assert_close(a, b)


# the sparse softmax


@pytest.mark.parametrize("n, m", [(6, 6), (4, 9), (1, 1)])
def test_sparse_attention_and_its_gradient_are_the_naive_ones(n, m):
    attn = torch.randn(2, 3, n, m, dtype=D).softmax(-1).requires_grad_()
    mask = torch.rand(2, 3, n, m) < 0.3
    mask[0, 0, 0] = False
    ours = sparse_attention(attn, mask)
    theirs = torch.stack([naive.survivors(row, kept) for row, kept in zip(attn.flatten(0, 2), mask.flatten(0, 2))]).view_as(attn)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((a * direction).sum(), attn)[0] for a in (ours, theirs)), rtol=1e-10, atol=1e-12)


def test_survivors_sum_to_one_and_a_row_without_one_keeps_its_largest():
    attn = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False], [True, False, False]])
    sparse = sparse_attention(attn, mask)
    torch.testing.assert_close(sparse, torch.tensor([[5 / 7, 0, 2 / 7], [0, 0, 1], [0, 1, 0]]))
    sparse[:, 0].sum().backward()
    assert torch.isfinite(attn.grad).all()


def test_the_helper_masks_and_does_not_renormalise():
    attn, mask = torch.rand(2, 3, 4, 5).softmax(-1), torch.rand(2, 3, 4, 5) < 0.5
    assert torch.equal(sparse_helper(attn, mask), torch.where(mask, attn, 0.0))


def test_survivors_of_large_half_precision_scores_are_finite():
    attn = (torch.randn(2, 3, 9, 9) * 1e4).to(torch.bfloat16).softmax(-1)
    mask = torch.rand(2, 3, 9, 9) < 0.3
    sparse = sparse_attention(attn, mask)
    assert sparse.dtype == torch.float32 and torch.isfinite(sparse).all()
    torch.testing.assert_close(sparse.sum(-1), torch.ones(2, 3, 9))


# decisions


def test_the_full_softmax_is_that_of_training():
    scores, live = torch.randn(2, 3, 6, 6, dtype=D), (torch.rand(2, 6) < 0.6).to(D)
    assert torch.equal(full_softmax(scores, live[:, None]), policy_softmax(scores, live))
    wide = torch.randn(2, 3, 4, 6, dtype=D)
    assert torch.equal(full_softmax(wide, live[:, None], own=True), policy_softmax(wide, live)), "windows: query i is key i, n < m"
    assert torch.equal(full_softmax(scores), scores.softmax(-1))


def test_where_queries_are_not_the_keys_no_key_counts_for_itself():
    scores, live = torch.randn(2, 3, 4, 6, dtype=D), torch.ones(2, 1, 6, dtype=D)
    live[..., [0, 4]] = 0
    attention = full_softmax(scores, live)
    kept = [1, 2, 3, 5]
    assert (attention[..., [0, 4]] == 0).all()
    torch.testing.assert_close(attention[..., kept], scores[..., kept].softmax(-1))
    flat = full_softmax(scores[:, 0], live[:, 0])
    torch.testing.assert_close(flat, attention[:, 0])


def test_decisions_get_a_finite_gradient_through_either_branch():
    q, k, live = queries_keys(6, 6)
    live.requires_grad_()
    mask = strong_mask(q, k, 0.5, 0.2, live)
    assert not mask.requires_grad
    for branch in (sparse_helper, sparse_attention):
        attention = full_softmax(q @ k.mT * 0.5, live)
        gradient, = torch.autograd.grad((branch(attention, mask) * torch.randn(2, 3, 6, 6, dtype=D)).sum(), live)
        assert torch.isfinite(gradient).all() and (gradient != 0).any()
    # A dropped key would take weight from the helper's survivors; renormalised among survivors it has no say.
    gradient, = torch.autograd.grad(sparse_helper(full_softmax(q @ k.mT * 0.5, live), mask)[0, :, 0].sum(), live)
    assert gradient[0, 0, 1] < 0


# density


def test_density_counts_pairs_of_live_tokens():
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    mask[..., 0] = True
    assert density(mask) == 0.25
    live = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]])
    share = density(mask, live)
    assert share.dtype == torch.float32 and share.dim() == 0 and not share.requires_grad
    assert share == pytest.approx((2 + 1) / (4 + 1))
    mask[0, :, 0, 3] = mask[0, :, 3, 1] = True
    assert density(mask, live) == share, "what dead queries and keys would do does not count"
    assert density(mask[:, :, :2], live) == pytest.approx((2 + 2) / (4 + 2)), "all queries are alive where they are not the keys"
    assert density(mask[:, :, :2], live, own=True) == pytest.approx((2 + 1) / (4 + 1))
    assert density(mask, torch.zeros(2, 1, 4)) == 0
