"""Softmax attention in the three forms of the token stream."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.explicit import explicit_attention
from foveate.nn.precision import at_least_float32
from foveate.nn.ragged import EXPLICIT_CALL, FUSED_CALL, by_bucket, varlen_attention, varlen_runs
from foveate.nn.tokens import Tokens

Mix = Callable[..., Tensor]
"""What stands between the projections and the output linear: mix(q, k, v, tokens, scale, fused, dropout, ...) -> z."""

Fused = bool | Callable[[Tensor, Tensor], bool]
"""Softmax attention in torch's fused kernel or spelled out; an engine brings a function(q, k) [B, H, n, d] that knows what is faster here."""


def SKIP(*_, **__) -> Tensor:
    """The Mix that says: this attention branch (norm, attention, residual) does not run at all. It is never called."""
    raise AssertionError("a skipped attention was run")


LOUDEST_DEAD_KEY = 3.0
"""A dropped key's score counts as at most this far above the loudest live one in the gradient of its decision."""


def policy_softmax(scores: Tensor, live: Tensor) -> Tensor:
    """Softmax over keys in which every key counts with its decision weight, and every token at least for itself.

    A_ij = exp(S_ij - max) P_ij / sum_j exp(S_ij - max) P_ij with P_ij = D_j and P_ii = 1 (semantics.md 1), in
    float32 or wider. A mask of -inf would give the decisions no gradient; this form does. Deviation: where a dropped key
    scores more than 3 above every live one, the gradient of its decision is bounded (values never differ).

    scores: [B, H, n, m] with n <= m; query i is key i.  live: decision weights [B, m] (or [B, 1, n, m], used as P).
    """
    scores = at_least_float32(scores)
    weights = live.to(scores.dtype)
    if weights.dim() == 2:
        own = torch.eye(scores.shape[-2], scores.shape[-1], dtype=torch.bool, device=scores.device)
        weights = weights[:, None, None, :].expand(-1, 1, scores.shape[-2], -1).masked_fill(own, 1.0)
    top = scores.detach().masked_fill(weights <= 0, -torch.inf).amax(-1, keepdim=True)
    # A dead key may score far above the live ones. Its weight is 0 whatever stands here, but the gradient of its decision
    # would be exp of that distance: seen up to 1e12 on trained models, after which clipping leaves nothing to learn from.
    unnormalised = torch.exp((scores - top).clamp_max(LOUDEST_DEAD_KEY)) * weights
    return unnormalised / unnormalised.sum(-1, keepdim=True)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, live: Tensor, scale: float, bias: Tensor | None = None,
                     dropout: float = 0.0) -> Tensor:
    """Attention under decision weights: q [B, H, n, d], k, v [B, H, m, d], live as in `policy_softmax` -> [B, H, n, d_v]."""
    scores = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    weights = policy_softmax(scores, live)
    return (F.dropout(weights, dropout) if dropout else weights).to(v.dtype) @ v


def is_fused(fused: Fused, q: Tensor, k: Tensor) -> bool:
    """Whether softmax attention of q [B, H, n, d] over k [B, H, m, d] is to run in torch's fused kernel."""
    return fused(q, k) if callable(fused) else fused


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, fused: Fused = True, dropout: float = 0.0, there: Tensor | None = None) -> Tensor:
    """Softmax attention over all keys: q [B, H, n, d], k, v [B, H, m, d] -> [B, H, n, d_v].

    fused=False spells the products out, which in bfloat16 on a CPU is the faster way. there: keys that count, bool [B, m]; None: all.
    """
    there = None if there is None else there[:, None, None]
    if is_fused(fused, q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=there, scale=scale, dropout_p=dropout)
    return explicit_attention(q, k, v, scale, None if there is None else ~there, dropout)


def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: Fused = True, dropout: float = 0.0) -> Tensor:
    """Softmax attention among the live tokens of each image.

    q, k, v: [B, n, H, d], or ragged [T, H, d]; the result has the same leading shape.
    """
    if tokens.ragged:
        if varlen_runs(q, v):
            return varlen_attention(q, k, v, tokens.lengths, scale)
        typical = q[: len(q) // tokens.images].transpose(0, 1)[None]
        call = FUSED_CALL if is_fused(fused, typical, typical) else EXPLICIT_CALL
        return by_bucket(lambda q, k, v, there: dense_attention(q, k, v, scale, fused, there=there), q, k, v, tokens.lengths, call)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if tokens.masked:
        return masked_attention(q, k, v, tokens.live, scale, dropout=dropout).transpose(1, 2)
    return dense_attention(q, k, v, scale, fused, dropout).transpose(1, 2)
