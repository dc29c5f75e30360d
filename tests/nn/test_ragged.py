"""nn.ragged and nn.explicit: whoever shares a call, every image gets what it gets alone."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.nn import attention, explicit, ragged
from foveate.nn.attention import attend, dense_attention
from foveate.nn.explicit import explicit_attention, explicit_with_rows
from foveate.nn.mixing import mixed
from foveate.nn.taylor import taylor_attention
from foveate.nn.tokens import PREFIX, Tokens

D = torch.float64
CPU = torch.device("cpu")
MIXES = [(5, 3, 5, 8, 1), (7, 7, 7), (40, 2), (33, 64, 31, 70)]


def inputs(lengths, dtype=D, heads=2, d=4, e=6):
    return tuple(torch.randn(sum(lengths), heads, width, dtype=dtype) for width in (d, d, e))


def stream(lengths):
    return Tokens(torch.zeros(sum(lengths), 1), 1, (9, 9), torch.full((sum(lengths),), PREFIX), lengths=tuple(lengths))


def naive(q, k, v, scale, dtype=D):
    q, k, v = (t.to(dtype).transpose(-3, -2) for t in (q, k, v))
    return ((q @ k.transpose(-2, -1) * scale).softmax(-1) @ v).transpose(-3, -2)


def one_by_one(q, k, v, lengths, scale):
    return torch.cat([naive(*part, scale) for part in zip(*(t.split(lengths) for t in (q, k, v)))])


@pytest.mark.parametrize("call", [0, 100, 10**9])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("lengths", MIXES)
def test_every_grouping_gives_each_image_its_own(lengths, fused, call):
    q, k, v = inputs(lengths)
    ours = ragged.by_bucket(lambda *part: dense_attention(*part[:3], 0.5, fused, there=part[3]), q, k, v, lengths, call)
    torch.testing.assert_close(ours, one_by_one(q, k, v, lengths, 0.5))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("fused", [True, False, lambda q, k: q.shape[-2] % 2 == 0])
@pytest.mark.parametrize("lengths", MIXES)
@torch.inference_mode()
def test_ragged_attention_at_inference(lengths, fused, dtype, tolerance):
    q, k, v = inputs(lengths, dtype)
    ours = attend(q, k, v, stream(lengths), 0.5, fused)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), one_by_one(q, k, v, lengths, 0.5), atol=tolerance, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_flow_through_groups_made_in_inference_mode(fused):
    lengths = (5, 3, 5, 4)
    leaves = [t.requires_grad_() for t in inputs(lengths)]
    with torch.inference_mode():
        attend(*(t.detach() for t in leaves), stream(lengths), 0.5, fused)  # makes and keeps the layout
    weight = torch.randn(17, 2, 6, dtype=D)
    ours = torch.autograd.grad((attend(*leaves, stream(lengths), 0.5, fused) * weight).sum(), leaves)
    for mine, other in zip(ours, torch.autograd.grad((one_by_one(*leaves, lengths, 0.5) * weight).sum(), leaves)):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_no_number_in_one_image_stays_in_it(fused):
    lengths = (3, 5)
    q, k, v = inputs(lengths)
    v[-1] = torch.inf
    for call in (0, 10**9):
        ours = ragged.by_bucket(lambda *part: dense_attention(*part[:3], 0.5, fused, there=part[3]), q, k, v, lengths, call)
        assert ours[:3].isfinite().all() and not ours[3:].isfinite().any()


def test_layouts_cost_what_they_promise():
    lengths = (9, 4, 9, 8, 2)
    assert ragged.layout_of((5, 4, 3), 0, 0, CPU).buckets == (), "all by themselves: nothing is copied"
    equal = ragged.layout_of(lengths, 0, 0, CPU)
    assert [bucket.images for bucket in equal.buckets] == [2, 1, 1, 1] and all(bucket.there is None for bucket in equal.buckets)
    some = ragged.layout_of(lengths, 17, 0, CPU)  # 81 - 64 scores for the image of 8, 16 - 4 for that of 2
    assert [bucket.images for bucket in some.buckets] == [3, 2]
    assert [bucket.there.sum(1).tolist() for bucket in some.buckets] == [[9, 9, 8], [4, 2]]
    assert [bucket.images for bucket in ragged.layout_of(lengths, 16, 0, CPU).buckets] == [2, 1, 2]
    assert [bucket.images for bucket in ragged.layout_of(lengths, 12, 4, CPU).buckets] == [3, 2], "linear: 4 a token"
    for layout in (equal, some):
        rows = torch.cat([torch.arange(32)[bucket.rows] for bucket in layout.buckets])
        assert torch.equal(rows[layout.back], torch.arange(32))


def test_linear_functions_run_in_groups_and_ordered_ones_image_by_image():
    lengths, calls = (5, 3, 5, 4), []
    q, k, v = inputs(lengths)

    def function(q, k, v, weights):
        calls.append((len(q), weights))
        return taylor_attention(q, k, v, 0.5, weights)

    alone = mixed(function, q, k, v, stream(lengths))
    assert [images for images, _ in calls] == [1] * 4 and all(weights is None for _, weights in calls)
    calls.clear()
    torch.testing.assert_close(mixed(function, q, k, v, stream(lengths), alike=True), alone)
    assert sum(images for images, _ in calls) == 4 > len(calls)


def test_packed_sequences_go_to_the_kernel_that_knows_their_starts(monkeypatch):
    lengths = (4, 2, 7)
    q, k, v = inputs(lengths, e=4)

    def varlen(q, k, v, starts, key_starts, longest, longest_key, scale):
        assert starts.dtype == torch.int32 and starts.tolist() == key_starts.tolist() == [0, 4, 6, 13]
        assert longest == longest_key == 7
        return one_by_one(q, k, v, lengths, scale)

    assert not ragged.varlen_runs(q, v)
    monkeypatch.setattr(ragged, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "varlen_runs", lambda q, v: True)
    torch.testing.assert_close(attend(q, k, v, stream(lengths), 0.3), one_by_one(q, k, v, lengths, 0.3))


@pytest.mark.parametrize("piece", [1, 3000, 10**9])
@pytest.mark.parametrize("dtype, tolerance", [(D, 1e-12), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("n, m", [(70, 70), (1, 40), (33, 200), (5, 32)])
@torch.inference_mode()
def test_spelled_out_attention_in_pieces_of_any_size(monkeypatch, n, m, dtype, tolerance, piece):
    monkeypatch.setattr(explicit, "PIECE_BYTES", piece)
    q, k, v = (torch.randn(3, 2, length, 4, dtype=dtype) for length in (n, m, m))
    hidden = torch.rand(3, 1, 1, m) > 0.7
    scores = (q.to(D) @ k.to(D).transpose(-2, -1) * 0.5)
    close = lambda ours, theirs: torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=0)
    close(explicit_attention(q, k, v, 0.5), scores.softmax(-1) @ v.to(D))
    close(explicit_attention(q, k, v, 0.5, hidden), scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.to(D))
    z, rows = explicit_with_rows(q, k, v, 0.5)
    close(z, scores.softmax(-1) @ v.to(D))
    close(rows, scores.softmax(-1)[:, :, 0])


def test_no_more_scores_are_held_than_a_piece(monkeypatch):
    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.entries = max(self.entries, out.numel() if torch.is_tensor(out) else 0)
            return out

    monkeypatch.setattr(explicit, "PIECE_BYTES", 64 * 2 * 300 * 4)
    q, k, v = (torch.randn(4, 2, 300, 4) for _ in range(3))
    with torch.no_grad(), Largest() as seen:
        pieces = explicit_attention(q, k, v, 0.5)
    assert seen.entries == 64 * 2 * 300
    with Largest() as seen:
        torch.testing.assert_close(explicit_attention(q, k, v, 0.5), pieces)
    assert seen.entries == 4 * 2 * 300 * 300, "a gradient keeps them all"
