"""Attention functions on the token stream in its three forms; no linear attention ever holds an n x n tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.nn.attention import attend, dense_attention
from foveate.nn.linear import efficient, linear_transformer, linformer, orthogonal_features, performer
from foveate.nn.mixing import mixed
from foveate.nn.sparse import full_softmax, sparse_helper, strong_mask
from foveate.nn.taylor import taylor_algorithm, taylor_attention, taylor_dense
from foveate.nn.tokens import Tokens, dense, from_rows, with_all_live

D = torch.float64
OMEGA = orthogonal_features(5, 4, torch.Generator().manual_seed(0))


def taylor(q, k, v, weights):
    return taylor_attention(q, k, v, 0.5, weights)


def softmax(q, k, v, weights):
    return full_softmax(q @ k.mT * 0.5, weights) @ v


def helped(q, k, v, weights):
    mask = strong_mask(q, k, 0.5, 0.2, weights)
    return taylor(q, k, v, weights) + sparse_helper(full_softmax(q @ k.mT * 0.5, weights), mask) @ v


FUNCTIONS = {"taylor": taylor, "softmax": softmax, "helped": helped, "linear": linear_transformer, "efficient": efficient,
             "performer": lambda q, k, v, weights: performer(q, k, v, 0.5, OMEGA, weights)}


def stream_of(lost, length=6):
    """Masked and ragged stream of images that lost the given tokens, and which rows of the masked one are alive."""
    stream = dense(torch.zeros(len(lost), length, 8, dtype=D), 1, (1, length - 1))
    live = torch.ones(len(lost), length, dtype=D)
    for image, gone in enumerate(lost):
        live[image, gone] = 0
    alive = live.flatten() > 0
    packed = from_rows(stream, stream.x.flatten(0, 1)[alive], stream.image_of_row()[alive], stream.places().flatten()[alive])
    return Tokens(stream.x, 1, stream.grid, stream.place, live=live), packed, alive


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ragged_masked_and_one_by_one_are_the_same(name):
    """Three images of 6 tokens that lost 0, 2 and all but one of them; values narrower than keys."""
    lost, function = [[], [2, 4], [1, 2, 3, 4, 5]], FUNCTIONS[name]
    masked, ragged, alive = stream_of(lost)
    assert ragged.lengths == (6, 4, 1)
    q, k, v = (torch.randn(3, 6, 2, width, dtype=D) for width in (4, 4, 3))
    expected = mixed(function, q, k, v, masked)
    ours = mixed(function, *(t.flatten(0, 1)[alive] for t in (q, k, v)), ragged)
    assert expected.shape == (3, 6, 2, 3) and ours.shape == (11, 2, 3)
    torch.testing.assert_close(ours, expected.flatten(0, 1)[alive], rtol=1e-12, atol=1e-12)
    for i, gone in enumerate(lost):
        rows = [n for n in range(6) if n not in gone]
        one = dense(torch.zeros(1, len(rows), 8, dtype=D), 1, (1, len(rows) - 1))
        alone = mixed(function, q[i : i + 1, rows], k[i : i + 1, rows], v[i : i + 1, rows], one)
        torch.testing.assert_close(alone[0], expected[i, rows], rtol=1e-12, atol=1e-12)


def test_softmax_through_it_is_the_attention_of_all_other_blocks():
    masked, ragged, alive = stream_of([[], [2, 4], [1]])
    q, k, v = (torch.randn(3, 6, 2, 4, dtype=D) for _ in range(3))
    torch.testing.assert_close(mixed(softmax, q, k, v, masked), attend(q, k, v, masked, 0.5))
    rows = [t.flatten(0, 1)[alive] for t in (q, k, v)]
    torch.testing.assert_close(mixed(softmax, *rows, ragged), attend(*rows, ragged, 0.5))
    uniform = dense(torch.zeros(3, 6, 8, dtype=D), 1, (1, 5))
    torch.testing.assert_close(mixed(softmax, q, k, v, uniform), attend(q, k, v, uniform, 0.5))
    torch.testing.assert_close(mixed(softmax, q, k, v, with_all_live(uniform)), attend(q, k, v, uniform, 0.5))


def test_weights_of_its_own_take_precedence():
    """Four windows of two images with one extra key each, whatever the form of the stream."""
    masked, ragged, _ = stream_of([[], [2, 4]])
    q, k, v = torch.randn(4, 3, 2, 4, dtype=D), torch.randn(4, 5, 2, 4, dtype=D), torch.randn(4, 5, 2, 4, dtype=D)
    weights = torch.ones(4, 5, dtype=D)
    weights[1, [0, 3]] = 0
    kept = [1, 2, 4]
    for stream in (masked, ragged):
        ours = mixed(taylor, q, k, v, stream, weights)
        assert ours.shape == (4, 3, 2, 4)
        expected = taylor_dense(q[1].transpose(0, 1), k[1, kept].transpose(0, 1), v[1, kept].transpose(0, 1), 0.5)
        torch.testing.assert_close(ours[1].transpose(0, 1), expected)


def test_fewer_queries_than_keys_take_the_weights_of_the_keys():
    masked, _, _ = stream_of([[], [2, 4]])
    q, k, v = torch.randn(2, 3, 2, 4, dtype=D), torch.randn(2, 6, 2, 4, dtype=D), torch.randn(2, 6, 2, 5, dtype=D)
    kept = [0, 1, 3, 5]
    ours = mixed(taylor, q, k, v, masked)
    expected = taylor_dense(*(t.transpose(1, 2) for t in (q[1:], k[1:, kept], v[1:, kept])), 0.5)
    torch.testing.assert_close(ours[1:], expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_function_decides_what_is_wide(dtype):
    """q and k come out of a norm in float32, v out of a linear in half precision: 1e4 must not overflow in either."""
    stream = dense(torch.zeros(2, 9, 8), 1, (2, 4))
    q, k, v = torch.randn(2, 9, 2, 4) * 1e-3, torch.randn(2, 9, 2, 4).clamp(-1, 1) * 1e4, (torch.randn(2, 9, 2, 4) * 1e3).to(dtype)
    seen = []
    with torch.autocast("cpu", dtype=dtype):
        ours = mixed(lambda *a: seen.append((a[0].dtype, torch.is_autocast_enabled("cpu"))) or taylor(*a), q, k, v, stream)
    assert seen == [(dtype, False)] and ours.dtype == dtype
    exact = mixed(taylor, q.to(dtype).double(), k.to(dtype).double(), v.double(), stream)
    assert (ours.double() - exact).abs().max() < 0.02 * exact.abs().max()


# no n x n


class Shapes(TorchDispatchMode):
    """Every shape that any operation puts out."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen |= {tuple(t.shape) for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out

    def quadratic(self, n):
        return [shape for shape in self.seen if sum(size >= n for size in shape) > 1]


PROJECTION = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
LINEAR = {
    "taylor": taylor, "algorithm": lambda q, k, v, w: taylor_algorithm(q, k, v, 0.5, w)[0],
    "linformer": lambda q, k, v, w: linformer(q, k, v, 0.5, PROJECTION, PROJECTION, w),
    "performer": lambda q, k, v, w: performer(q, k, v, 0.5, OMEGA, w), "linear": linear_transformer, "efficient": efficient,
}


def trace(function, weighted, dtype=torch.float32):
    q, k, v = (torch.randn(2, 3, 97, width).to(dtype).requires_grad_() for width in (4, 4, 6))
    weights = torch.rand(2, 1, 97).requires_grad_() if weighted else None
    with Shapes() as shapes:
        function(q, k, v, weights).sum().backward()
    assert len(shapes.seen) > 5
    return shapes.quadratic(97)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attentions_never_hold_all_pairs(name, weighted):
    """Neither forward nor backward; n and m are 97, every other dimension is smaller."""
    assert not trace(LINEAR[name], weighted)
    assert not trace(LINEAR[name], weighted, torch.bfloat16)


def test_the_trace_sees_all_pairs_where_they_are():
    assert trace(lambda q, k, v, w: taylor_dense(q, k, v, 0.5, w), False) and trace(lambda q, k, v, w: dense_attention(q, k, v, 0.5, fused=False), False)


def test_packed_images_are_never_multiplied_with_one_another():
    masked, ragged, alive = stream_of([[], list(range(1, 96, 2)), [5]], length=97)
    rows = [torch.randn(int(alive.sum()), 3, width) for width in (4, 4, 6)]
    with Shapes() as shapes:
        mixed(taylor, *rows, ragged)
    assert not [shape for shape in shapes.seen if sum(size >= 49 for size in shape) > 1]
