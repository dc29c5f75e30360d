"""Taylor attention: closed, stepwise and dense form against the naive one, large means, half precision, shapes."""

import pytest
import torch

from foveate.nn.taylor import STEPS, algorithm_terms, taylor_algorithm, taylor_attention, taylor_dense, taylor_map
from naive import linear as naive

D = torch.float64
FORMS = {"closed": taylor_attention, "algorithm": lambda *a: taylor_algorithm(*a)[0], "dense": taylor_dense}
SHAPES = [(7, 7, 4, 4), (5, 9, 3, 6), (1, 1, 1, 2), (1, 6, 2, 1), (8, 3, 5, 2)]


def inputs(n, m, d, e, weighted, dtype=D):
    leaves = [torch.randn(2, 3, n, d, dtype=dtype), torch.randn(2, 3, m, d, dtype=dtype), torch.randn(2, 3, m, e, dtype=dtype)]
    if weighted:
        live = torch.rand(2, 1, m, dtype=dtype)
        live[:, :, 1::3] = 0  # dead, partly alive and fully alive keys
        live[:, :, 0] = 1
        leaves.append(live)
    return [t.requires_grad_() for t in leaves]


def per_head(function, q, k, v, scale, weights):
    weights = q.new_ones(2, 1, k.shape[2]) if weights is None else weights
    return torch.stack([torch.stack([function(q[b, h], k[b, h], v[b, h], scale, weights[b, 0]) for h in range(3)]) for b in range(2)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_and_its_gradients_are_the_naive_ones(form, weighted, shape):
    leaves = inputs(*shape, weighted)
    q, k, v, weights = leaves if weighted else (*leaves, None)
    ours, theirs = FORMS[form](q, k, v, 0.4, weights), per_head(naive.taylor, q, k, v, 0.4, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    mine, other = (torch.autograd.grad((z * direction).sum(), leaves) for z in (ours, theirs))
    for a, b in zip(mine, other):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_algorithm_yields_its_terms_in_the_order_of_the_paper():
    q, k, v, live = (t.detach() for t in inputs(5, 9, 3, 6, True))
    z, terms = taylor_algorithm(q, k, v, 0.25, live)
    assert list(terms)[-8:] == ["k_bar", "k_hat", "g", "k_hat_sum", "v_sum", "t_d", "t_n", "z"]
    column, n = live[..., None], live.sum(-1)[..., None, None]
    torch.testing.assert_close(terms["k_hat"], k - (column * k).sum(2, keepdim=True) / n)
    torch.testing.assert_close(terms["k_hat_sum"], torch.zeros(2, 3, 1, 3, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(terms["t_d"], (4 * n).expand(2, 3, 5, 1))
    torch.testing.assert_close(terms["t_n"], 4 * (column * v).sum(2, keepdim=True) + q @ terms["g"])
    torch.testing.assert_close(terms["z"], z)


def test_each_step_can_be_run_alone():
    q, k, v = (t.detach() for t in inputs(5, 5, 3, 3, False))
    terms = algorithm_terms(q, k, v, 0.5)
    added = []
    for step in STEPS.values():
        before = set(terms)
        step(terms)
        added.append(set(terms) - before)
    assert list(STEPS) == ["k_hat", "g", "sums", "t_d", "t_n", "z"]
    assert added == [{"k_bar", "k_hat"}, {"g"}, {"k_hat_sum", "v_sum"}, {"t_d"}, {"t_n"}, {"z"}]
    torch.testing.assert_close(terms["z"], taylor_attention(q, k, v, 0.5))


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_the_map_sum_to_one_and_may_be_negative(weighted):
    leaves = [t.detach() for t in inputs(40, 60, 8, 8, weighted)]
    weights = leaves[3] if weighted else None
    attention = taylor_map(leaves[0], leaves[1], 8**-0.5, weights)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 40, dtype=D))
    assert (attention < 0).float().mean() > 0.05, "Gaussian queries and keys: legitimate"
    assert not weighted or (attention[..., 1::3] == 0).all()


def test_it_is_the_first_order_of_softmax():
    q, k, v = (t.detach() for t in inputs(6, 9, 4, 4, False))
    error = [(taylor_attention(q, k, v, s) - (q @ k.mT * s).softmax(-1) @ v).abs().max() for s in (0.02, 0.01)]
    assert 3.5 < error[0] / error[1] < 4.5, "half the scores, a quarter of the error"


def test_weights_of_zero_and_one_remove_keys():
    q, k, v = (t.detach() for t in inputs(5, 9, 3, 6, False))
    kept = [0, 3, 4, 8]
    live = torch.zeros(1, 1, 9, dtype=D)
    live[..., kept] = 1
    for form in FORMS.values():
        torch.testing.assert_close(form(q, k, v, 0.4, live), form(q, k[:, :, kept], v[:, :, kept], 0.4), rtol=1e-12, atol=1e-12)


def test_one_live_key_gives_its_value_and_none_gives_zero():
    q, k, v = (t.detach() for t in inputs(5, 9, 3, 6, False))
    live = torch.zeros(2, 1, 9, dtype=D)
    live[0, 0, 4] = 1
    live.requires_grad_()
    z = taylor_attention(q, k, v, 0.4, live)
    torch.testing.assert_close(z[0], v[0, :, 4:5].expand(3, 5, 6))
    assert (z[1] == 0).all()
    z.sum().backward()
    assert torch.isfinite(live.grad).all()


def test_leading_dimensions_are_free():
    q, k, v = torch.randn(5, 3, dtype=D), torch.randn(7, 3, dtype=D), torch.randn(7, 2, dtype=D)
    live = torch.rand(7, dtype=D)
    one = taylor_attention(q, k, v, 0.4, live)
    torch.testing.assert_close(one, naive.taylor(q, k, v, 0.4, live))
    many = taylor_attention(*(t.expand(2, 3, 4, *t.shape) for t in (q, k, v)), 0.4, live)
    torch.testing.assert_close(many, one.expand(2, 3, 4, 5, 2))


def relative(ours, exact):
    """Largest error against the size of the exact result."""
    return float((ours.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean_of_v", [0, 100])
@pytest.mark.parametrize("dtype, within", [(torch.float32, 3e-5), (torch.bfloat16, 0.01), (torch.float16, 1e-3)])
def test_means_far_above_the_spread_do_not_cancel(dtype, within, mean_of_v, weighted):
    """Keys (and values) whose mean is 100 times their spread; K^T V - N mean(K) mean(V)^T is off by half in bfloat16."""
    q = torch.randn(2, 3, 50, 16).to(dtype)
    k, v = ((torch.randn(2, 3, 64, 16) + mean * torch.randn(2, 3, 1, 16)).to(dtype) for mean in (100, mean_of_v))
    live = torch.ones(2, 1, 64)
    live[:, :, ::5] = 0
    live = live if weighted else None
    exact = taylor_dense(q.double(), k.double(), v.double(), 0.25, live)
    assert relative(taylor_attention(q, k, v, 0.25, live), exact) < within


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype, within", [(torch.bfloat16, 0.02), (torch.float16, 2e-3)])
@pytest.mark.parametrize("q_size, k_size, v_size", [(1e4, 1e-3, 0.1), (1e-3, 1e4, 0.1), (1, 1, 1e4), (1e-3, 1e4, 1e4), (1e4, 1e4, 1e4)])
def test_activations_of_ten_thousand_in_half_precision(q_size, k_size, v_size, dtype, within, weighted):
    """Wherever the result itself can be held: float16 has no room for what three such inputs give (1e12)."""
    q, k, v = (torch.randn(2, 3, 197, 64).clamp(-1, 1).mul(size).to(dtype) for size in (q_size, k_size, v_size))
    live = (torch.rand(2, 1, 197) < 0.7).float() if weighted else None
    exact = taylor_dense(q.double(), k.double(), v.double(), 0.125, live)
    fits = exact.abs().max() < torch.finfo(dtype).max
    assert fits == (dtype == torch.bfloat16 or q_size * k_size < 1e8)
    if fits:
        forms = FORMS.values() if q_size * k_size < 1e8 else (taylor_attention, taylor_dense)
        for form in forms:
            ours = form(q, k, v, 0.125, live)
            assert ours.dtype == dtype and torch.isfinite(ours).all()
            assert relative(ours, exact) < within


def test_gradients_in_bfloat16_are_near_the_exact_ones():
    leaves = [t.requires_grad_() for t in (torch.randn(2, 3, 33, 16).bfloat16() for _ in range(3))]
    live = (torch.rand(2, 1, 33) < 0.7).float().requires_grad_()
    direction = torch.randn(2, 3, 33, 16)
    exact = [t.detach().double().requires_grad_() for t in (*leaves, live)]
    mine = torch.autograd.grad((taylor_attention(*leaves, 0.25, live).float() * direction).sum(), (*leaves, live))
    theirs = torch.autograd.grad((taylor_dense(*exact[:3], 0.25, exact[3]) * direction.double()).sum(), exact)
    for a, b in zip(mine, theirs):
        assert relative(a, b) < 0.03


def test_queries_and_keys_in_views_of_one_projection():
    q, k, v = torch.randn(2, 9, 3, 4, 5, dtype=D).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(taylor_attention(q, k, v, 0.4), taylor_dense(q.contiguous(), k.contiguous(), v.contiguous(), 0.4))


def test_an_exported_graph_takes_any_number_of_tokens():
    """The number of keys must not become a constant of the graph."""
    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return taylor_attention(q, k, v, 0.25)

    few, many = (tuple(torch.randn(1, 2, n, 4) for _ in range(3)) for n in (9, 14))
    n = torch.export.Dim("n", min=2, max=5000)
    graph = torch.export.export(Attention(), few, dynamic_shapes=[{2: n}] * 3).module()
    torch.testing.assert_close(graph(*many), taylor_attention(*many, 0.25))
    traced = torch.jit.trace(Attention(), few, check_trace=False)
    torch.testing.assert_close(traced(*many), taylor_attention(*many, 0.25))
