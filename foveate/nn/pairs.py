"""Softmax attention between fixed pairs of tokens: which pairs a head keeps, and what it makes of them.

A table [H, 1 + N, 1 + N] of booleans says for each head whether the token in place i of a grid of N sees the one in place j. Row and
column 0 stand for tokens without a place, prefix and package tokens: they see all and are seen by all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.attention import masked_attention


def strongest(scores: Tensor, kept: int) -> Tensor:
    """The table in which every place sees itself and the kept - 1 others with the largest scores [H, N, N]; of equal ones the first."""
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    order = scores.masked_fill(own, torch.inf).argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return F.pad(torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True), (1, 0, 1, 0), value=True)


def nearest(grid: tuple[int, int], heads: int, kept: int) -> Tensor:
    """The table in which every place of a grid (rows, columns) sees itself and the kept - 1 places nearest to it, in all heads alike."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    at = torch.stack([rows, columns], -1).flatten(0, 1)
    distance = (at[:, None] - at).square().sum(-1).float()
    return strongest(-distance[None], kept).repeat(heads, 1, 1)


def pairs_of(table: Tensor, place: Tensor) -> Tensor:
    """Which tokens see which: bool [B, H, n, n] for place [B, n] (see Tokens), [1, H, n, n] for a place [n] that all images share."""
    index = (place if place.dim() > 1 else place[None]) + 1
    index = index.clamp_min(0)
    return table[:, index[:, :, None], index[:, None, :]].transpose(0, 1)


def pairs_attention(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, scale: float, weights: Tensor | None = None, fused: bool = True,
                    dropout: float = 0.0) -> Tensor:
    """Softmax attention over the keys that each query sees; all scores are computed, the others' are then left out.

    q, k: [B, H, n, d], v: [B, H, n, e], pairs: bool, broadcastable to [B, H, n, n], every token with itself. weights: decision weights of
    the keys, [B, 1, n]; a query counts itself 1, as in `policy_softmax`. fused=False spells the products out. Returns [B, H, n, e].
    """
    if weights is not None:
        own = torch.eye(q.shape[-2], dtype=torch.bool, device=q.device)
        return masked_attention(q, k, v, (weights.unsqueeze(-2) * pairs).masked_fill(own, 1.0), scale, dropout=dropout)
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs, scale=scale, dropout_p=dropout)
    attention = ((q * scale) @ k.mT).masked_fill(~pairs, -torch.inf).softmax(-1)
    return (F.dropout(attention, dropout) if dropout else attention) @ v
