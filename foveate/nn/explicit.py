"""Softmax attention spelled out as two matrix products with a softmax between them: in bfloat16 on a CPU the faster way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 8 * 2**20
"""Scores computed at once: what stays in the cache, and small enough that memory is not asked of the system anew every time."""
FEWEST_QUERIES = 32
STEP, ALIGNED = 32, 192
"""In bfloat16 torch's softmax over a multiple of 32 keys takes a fifth of the time of one over 61; from 192 keys on the rest is small."""


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(scale Q K^T) V: q [B, H, n, d], k [B, H, m, d], v [B, H, m, e] -> [B, H, n, e].

    hidden: keys that nobody sees, bool [B, 1, 1, m], not all of an image. Without gradients no more than 8 MiB of scores are held.
    """
    if dropout or not _in_pieces():
        weights = _weights(q, k, scale, hidden)
        return (F.dropout(weights, dropout) if dropout else weights) @ v
    parts = []
    for images, queries in _pieces(q, k):
        parts.append(_aligned(q[images, :, queries], k[images], v[images], scale, None if hidden is None else hidden[images])[1])
    return _joined(parts, q.shape[:3])


def explicit_with_rows(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`explicit_attention` and what its first query attends to: [B, H, n, e] and [B, H, m]."""
    if not _in_pieces():
        weights = _weights(q, k, scale, None)
        return weights @ v, weights[:, :, 0]
    parts, rows = [], []
    for images, queries in _pieces(q, k):
        weights, z = _aligned(q[images, :, queries], k[images], v[images], scale, None)
        parts.append(z)
        if not queries.start:  # the pieces that hold the first query
            rows.append(weights[:, :, 0, : k.shape[2]])
    return _joined(parts, q.shape[:3]), torch.cat(rows)


def _weights(q: Tensor, k: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    return (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(-1)


def _aligned(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """The maps [B, H, n, m or more], in rows of aligned length where the softmax gains by it, and their products with v [B, H, n, e]."""
    m = k.shape[2]
    more = -m % STEP if q.dtype == torch.bfloat16 and m < ALIGNED else 0
    # Rows of a joint projection lie far apart; products over copies are faster by more than the copies take.
    k, v = (F.pad(t, (0, 0, 0, more)) if more else t.contiguous() for t in (k, v))
    scores = (q.contiguous() * scale) @ k.transpose(-2, -1)
    if hidden is not None:
        # A sum, which a CPU does in a tenth of the time that masked_fill with a mask to be expanded takes.
        scores[..., :m] += q.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    scores[..., m:] = -torch.inf
    weights = torch.softmax(scores, -1, out=scores)
    return weights, weights @ v


def _in_pieces() -> bool:
    """Not where a gradient keeps the scores anyway, nor in a graph, of which sizes must not become constants."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """(images, queries) to compute at once: some whole images, or part of the queries of one."""
    images, heads, n = q.shape[:3]
    row = heads * k.shape[2] * q.element_size()
    together, queries = max(1, PIECE_BYTES // (row * n)), min(n, max(FEWEST_QUERIES, PIECE_BYTES // row))
    for image in range(0, images, together):
        for query in range(0, n, queries):
            yield slice(image, image + together), slice(query, query + queries)


def _joined(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """Pieces [b, H, r, e] in the order of `_pieces` as one tensor [B, H, n, e]."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].shape[2] == shape[2]:
        return torch.cat(parts)
    each = len(parts) // shape[0]
    return torch.cat([torch.cat(parts[i : i + each], 2) for i in range(0, len(parts), each)])
