"""What the class token attends to, against loops over heads and keys."""

from dataclasses import replace

import pytest
import torch

from foveate.nn.attention import attend
from foveate.nn.class_row import class_row, watched
from foveate.nn.taylor import taylor_attention
from foveate.nn.tokens import PACKAGE, dense, from_rows, with_all_live

HEADS, WIDTH, SCALE = 3, 4, 0.5


def naive_row(q, k, live):
    """Mean over heads of softmax(q_cls k^T / sqrt(d)) over live keys, in float64: q, k [n, H, d], live [n]."""
    n, row = len(k), [0.0] * len(k)
    for head in range(HEADS):
        scores = [SCALE * sum(float(q[0, head, c]) * float(k[j, head, c]) for c in range(WIDTH)) for j in range(n)]
        weights = [float(live[j]) * 2.718281828459045 ** s for j, s in enumerate(scores)]
        for j in range(n):
            row[j] += weights[j] / sum(weights) / HEADS
    return torch.tensor(row, dtype=torch.float64)


def stream(images: int = 3, dtype=torch.float64):
    torch.manual_seed(2)
    tokens = dense(torch.zeros(images, 7, 2, dtype=dtype), 1, (2, 3))
    return tokens, *(torch.randn(images, 7, HEADS, WIDTH, dtype=dtype) for _ in range(3))


def ragged_of(tokens, kept, *parts):
    """The stream and `parts` with only `kept` [images][places] patches behind the class token."""
    rows = [(i, p + 1) for i, places in enumerate(kept) for p in (-1, *places)]
    image, column = (torch.tensor(c) for c in zip(*rows))
    packed = from_rows(tokens, tokens.x[image, column], image, column - 1)
    return packed, *(part[image, column] for part in parts)


def test_uniform_masked_and_ragged_rows_are_the_naive_ones():
    tokens, q, k, _ = stream()
    row = class_row(q, k, tokens, SCALE)
    for i in range(3):
        torch.testing.assert_close(row[i], naive_row(q[i], k[i], torch.ones(7)))
    masked = with_all_live(tokens)
    masked.live[0, 3:5] = 0
    masked.live[2, 6] = 0.5
    row = class_row(q, k, masked, SCALE)
    for i in range(3):
        torch.testing.assert_close(row[i], naive_row(q[i], k[i], masked.live[i]))
    kept = [[0, 4], [1], [0, 1, 2, 5]]
    ragged, ragged_q, ragged_k = ragged_of(tokens, kept, q, k)
    assert ragged.ragged
    row = class_row(ragged_q, ragged_k, ragged, SCALE).split(ragged.lengths)
    for i, places in enumerate(kept):
        there = [0, *(p + 1 for p in places)]
        torch.testing.assert_close(row[i], naive_row(q[i, there], k[i, there], torch.ones(len(there))))


@pytest.mark.parametrize("fused", [True, False])
def test_a_watched_attention_gives_what_it_gives_unwatched(fused):
    tokens, q, k, v = stream(dtype=torch.float32)
    for mix in (attend, lambda q, k, v, tokens, scale, *_: taylor_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale).transpose(1, 2)):
        found = []
        z = watched(mix, 4, found)(q, k, v, tokens, SCALE, fused)
        torch.testing.assert_close(z, mix(q, k, v, tokens, SCALE, fused, 0.0))
        assert [w.block for w in found] == [4]
        torch.testing.assert_close(found[0].row, class_row(q, k, tokens, SCALE))


def test_the_row_follows_the_survivors():
    tokens, q, k, v = stream()
    found = []
    watched(attend, 1, found)(q, k, v, tokens, SCALE)
    row = found[0].row
    assert found[0].row_at(tokens.with_x(tokens.x + 1)) is row
    kept = [[0, 4], [1], [0, 1, 2, 5]]
    ragged, = ragged_of(tokens, kept)
    parts = found[0].row_at(ragged).split(ragged.lengths)
    for i, places in enumerate(kept):
        torch.testing.assert_close(parts[i][1:], row[i, [p + 1 for p in places]])
    uniform, = ragged_of(tokens, [[0, 4], [1, 2], [3, 5]])
    torch.testing.assert_close(found[0].row_at(uniform)[2, 1:], row[2, [4, 6]])
    package = replace(uniform, place=torch.cat([uniform.place[:, :-1], torch.full((3, 1), PACKAGE)], 1), packages=1)
    assert found[0].row_at(package)[:, -1].tolist() == [0, 0, 0]
