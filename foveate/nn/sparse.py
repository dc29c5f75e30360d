"""Sparse attention with Sanger's predictor, as ViTALiTy trains with it: where is softmax attention strong?

Layout: q [..., n, d], k [..., m, d], maps [..., n, m]; weights: decision weights of the keys, broadcastable to [..., m], or
None where every key counts 1. All is computed in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.nn.attention import policy_softmax
from foveate.nn.precision import at_least_float32


def quantise(x: Tensor, low: Tensor, high: Tensor, bits: int = 4) -> Tensor:
    """x rounded to the nearest of 2^bits equally spaced levels from low to high, both included; beyond them it is clipped.

    Straight-through: the gradient for x is 1 everywhere, outside the range too; low and high get none. Where low == high
    everything becomes low. low, high: broadcastable to x.
    """
    x = at_least_float32(x)
    with torch.no_grad():
        step = (high - low) / (2**bits - 1)
        level = ((x - low) / torch.where(step > 0, step, 1.0)).round().clamp(0, 2**bits - 1)
        rounded = low + level * step
    return rounded + (x - x.detach())


def ranges(x: Tensor, weights: Tensor | None = None, over: str = "image") -> tuple[Tensor, Tensor]:
    """Smallest and largest entry of the live tokens of x [..., m, d], without gradient; 0 and 0 where none is alive.

    over: "image", one range for every image and head, so that a batch of one equals a batch of n (semantics.md 11), as
    [..., 1, 1]; or "tensor", Sanger's one range for all, with as many dimensions of size 1.
    """
    assert over in ("image", "tensor")
    x = at_least_float32(x.detach())
    dims = (-2, -1) if over == "image" else tuple(range(x.dim()))
    if weights is None:
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    dead = (weights <= 0).unsqueeze(-1)
    low, high = x.masked_fill(dead, torch.inf).amin(dims, keepdim=True), x.masked_fill(dead, -torch.inf).amax(dims, keepdim=True)
    some = low <= high
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def predicted_attention(q: Tensor, k: Tensor, scale: float, weights: Tensor | None = None, bits: int = 4, bias: Tensor | None = None,
                        q_range: tuple[Tensor, Tensor] | None = None, k_range: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Sanger's prediction softmax(scale q4(Q) q4(K)^T + bias) over the live keys; no use where none is alive.

    bias: broadcastable to [..., n, m]. q_range, k_range: (low, high) of the quantisers, frozen or shared ones; by default the
    `ranges` of q and k, where queries count as the tokens of the keys if n == m and as all alive otherwise.
    The gradient is straight-through for q and k; decisions get none.
    """
    own = weights if q.shape[-2] == k.shape[-2] else None
    q_range, k_range = q_range or ranges(q, own), k_range or ranges(k, weights)
    scores = quantise(q, *q_range, bits) @ quantise(k, *k_range, bits).transpose(-2, -1) * scale
    if bias is not None:
        scores = scores + bias
    if weights is not None:
        # Not -inf: a row without live keys would become NaN.
        scores = scores.masked_fill((weights <= 0).unsqueeze(-2), torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


@torch.no_grad()
def strong_mask(q: Tensor, k: Tensor, scale: float, threshold: float, weights: Tensor | None = None, bits: int = 4,
                bias: Tensor | None = None, q_range: tuple[Tensor, Tensor] | None = None,
                k_range: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Where `predicted_attention` exceeds the threshold T in (0, 1]: bool [..., n, m], never true for a dead key.

    A row has fewer than 1/T such keys; it may have none, and with T = 1 it always has none.
    """
    mask = predicted_attention(q, k, scale, weights, bits, bias, q_range, k_range) > threshold
    return mask if weights is None else mask & (weights > 0).unsqueeze(-2)


def full_softmax(scores: Tensor, weights: Tensor | None = None, own: bool | None = None) -> Tensor:
    """Softmax of scores [..., n, m] under decision weights, as `policy_softmax` has it in training.

    own: whether query i is key i, which then counts 1 for it; by default where n == m. At least one leading dimension.
    """
    if weights is None:
        return at_least_float32(scores).softmax(-1)
    n, m = scores.shape[-2:]
    policy = weights.unsqueeze(-2).expand(*weights.shape[:-1], n, m)
    if n == m if own is None else own:
        policy = policy.masked_fill(torch.eye(n, m, dtype=torch.bool, device=scores.device), 1.0)
    return policy_softmax(scores, policy.expand(scores.shape))


def sparse_attention(attn: Tensor, mask: Tensor) -> Tensor:
    """Softmax renormalised over the keys that survive; a row without one keeps its largest weight (semantics.md 10).

    attn: full softmax [..., n, m], whatever weights it was taken under; mask: bool, same shape. A row also counts as without
    survivors where their weights sum up to nothing.
    """
    attn = at_least_float32(attn)
    best = torch.arange(attn.shape[-1], device=attn.device) == attn.argmax(-1, keepdim=True)
    empty = (attn.detach() * mask).sum(-1, keepdim=True) < torch.finfo(attn.dtype).tiny
    kept = attn * ((empty & best) | (~empty & mask))  # ONNX Runtime has no `where` between bools
    return kept / kept.sum(-1, keepdim=True)


def sparse_helper(attn: Tensor, mask: Tensor) -> Tensor:
    """The strong part of softmax attention that ViTALiTy adds in training: mask * softmax, not renormalised (semantics.md 10)."""
    return at_least_float32(attn) * mask


@torch.no_grad()
def density(mask: Tensor, weights: Tensor | None = None, own: bool | None = None) -> Tensor:
    """Share of (query, key) pairs of live tokens that mask [..., n, m] keeps, over all images and heads (Fig. 14); a scalar.

    own: whether query i is key i (n <= m) and so alive with it; by default where n == m. Other queries count as alive.
    """
    if weights is None:
        return mask.float().mean()
    n, m = mask.shape[-2:]
    live = weights > 0
    pairs = live.unsqueeze(-2).expand(*live.shape[:-1], n, m)
    if n == m if own is None else own:
        pairs = pairs & live[..., :n].unsqueeze(-1)
    pairs = pairs.expand(mask.shape)
    return (mask & pairs).sum() / pairs.sum().clamp_min(1)
