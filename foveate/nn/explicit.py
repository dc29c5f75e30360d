"""Softmax attention spelled out as two matrix products with a softmax between them: in bfloat16 on a CPU the faster way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 8 * 2**20
"""Scores computed at once: what stays in the cache, and small enough that memory is not asked of the system anew every time."""
FEWEST_QUERIES = 32


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(scale Q K^T) V: q [B, H, n, d], k [B, H, m, d], v [B, H, m, e] -> [B, H, n, e].

    hidden: keys that nobody sees, bool [B, 1, 1, m], not all of an image. Without gradients no more than 8 MiB of scores are held.
    """
    if dropout or not _in_pieces():
        weights = _weights(q, k, scale, hidden)
        return (F.dropout(weights, dropout) if dropout else weights) @ v
    parts = [_weights(q[i, :, r], k[i], scale, hidden if hidden is None else hidden[i]) @ v[i] for i, r in _pieces(q, k)]
    return _joined(parts, q.shape[:3])


def explicit_with_rows(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`explicit_attention` and what its first query attends to: [B, H, n, e] and [B, H, m]."""
    pieces = list(_pieces(q, k)) if _in_pieces() else [(slice(None), slice(None))]
    parts, rows = [], []
    for images, queries in pieces:
        weights = _weights(q[images, :, queries], k[images], scale)
        parts.append(weights @ v[images])
        if not queries.start:  # the pieces that hold the first query
            rows.append(weights[:, :, 0])
    return _joined(parts, q.shape[:3]), torch.cat(rows)


def _weights(q: Tensor, k: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    if torch.is_grad_enabled():
        return (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(-1)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, -1, out=scores)


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
