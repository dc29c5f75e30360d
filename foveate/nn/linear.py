"""Linear attentions that ViTALiTy is compared with (Tables IV and VI): Linformer, Performer, Linear Transformer, Efficient.

Layout: q [..., n, d], k [..., m, d], v [..., m, e] with equal leading dimensions; weights: decision weights of the keys,
broadcastable to [..., m], or None where every key counts 1. A key enters every sum over keys with its weight, so weights
of 0 and 1 do what removing keys does. All is computed in float32 or wider and returned in v's type, [..., n, e].
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.nn.attention import LOUDEST_DEAD_KEY
from foveate.nn.precision import at_least_float32


def linformer(q: Tensor, k: Tensor, v: Tensor, scale: float, project_k: Tensor, project_v: Tensor,
              weights: Tensor | None = None) -> Tensor:
    """softmax(scale Q (E K)^T) F V: softmax over r mixtures of keys (Eq. 7 of Linformer).

    project_k, project_v: E and F, [r, m] or broadcastable to [..., r, m]; column j belongs to key j, so a caller that removed
    keys removes their columns too.
    """
    wide_q, wide_k, wide_v = (at_least_float32(t) for t in (q, k, v))
    if weights is not None:
        column = weights.to(wide_k.dtype).unsqueeze(-1)
        wide_k, wide_v = wide_k * column, wide_v * column
    mixed_k, mixed_v = project_k.to(wide_k.dtype) @ wide_k, project_v.to(wide_v.dtype) @ wide_v
    return ((wide_q @ mixed_k.transpose(-2, -1) * scale).softmax(-1) @ mixed_v).to(v.dtype)


def orthogonal_features(r: int, d: int, generator: torch.Generator | None = None) -> Tensor:
    """r random directions [r, d] for `performer`, orthogonal in groups of d, each as long as a normal vector (FAVOR+).

    Float32 on the CPU; the same generator state gives the same directions.
    """
    groups = []
    for _ in range(-(-r // d)):
        basis, triangle = torch.linalg.qr(torch.randn(d, d, generator=generator))
        # With the signs of R's diagonal the basis is uniformly distributed; as QR leaves it, it is not.
        groups.append((basis * triangle.diagonal().sign()).T)
    lengths = torch.randn(r, d, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(groups)[:r] * lengths


def performer(q: Tensor, k: Tensor, v: Tensor, scale: float, features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax attention with exp(scale q.k) estimated by positive random features (FAVOR+, Lemma 1 of Performer).

    features: omega [r, d], or broadcastable to [..., r, d]; phi(x) = exp(omega x - |x|^2 / 2) of x = sqrt(scale) q or k.
    Factors that cancel (1 / sqrt r, |q|^2 / 2) are left out; so is the paper's additive epsilon, which exponents taken
    relative to each query's largest term make unnecessary. scale > 0.
    """
    q, k = (at_least_float32(t) * scale**0.5 for t in (q, k))
    directions = features.to(q.dtype).transpose(-2, -1)
    return _kernel_attention(q @ directions, k @ directions - k.square().sum(-1, keepdim=True) / 2, v, weights)


def linear_transformer(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None) -> Tensor:
    """phi(Q) phi(K)^T V, divided by the row sums, with phi(x) = elu(x) + 1 (Eqs. 5 and 7 of Transformers are RNNs).

    There is no scale in it. Deviation: computed from log phi, so that no query divides 0 by 0 and no epsilon is needed.
    """
    return _kernel_attention(_log_elu_plus_one(q), _log_elu_plus_one(k), v, weights)


def efficient(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None) -> Tensor:
    """softmax(Q) (softmax(K)^T V): queries over their channels, each channel of the keys over the live tokens.

    Softmax normalisation of Efficient Attention (Shen et al., Eq. 5 there); there is no scale in it.
    """
    shares = _weighted_exp(at_least_float32(k), weights)[0]
    shares = shares / _nonzero(shares.sum(-2, keepdim=True))
    return (at_least_float32(q).softmax(-1) @ (shares.transpose(-2, -1) @ at_least_float32(v))).to(v.dtype)


def _log_elu_plus_one(x: Tensor) -> Tensor:
    x = at_least_float32(x)
    return torch.where(x < 0, x, x.clamp_min(0).log1p())


def _kernel_attention(log_q: Tensor, log_k: Tensor, v: Tensor, weights: Tensor | None) -> Tensor:
    """sum_j a_ij v_j / sum_j a_ij with a_ij = D_j sum_f exp(log_q_if + log_k_jf): log_q [..., n, r], log_k [..., m, r].

    Each feature's largest key exponent moves over to the queries, and each query's largest exponent cancels: the largest
    term of every denominator is then 1 (times a weight), whatever the activations.
    """
    key_features, top = _weighted_exp(log_k, weights)
    # Relative to each query's own largest first: a common -1e4 would swallow the digits of `top`.
    exponents = log_q - log_q.detach().amax(-1, keepdim=True) + top
    query_features = torch.exp(exponents - exponents.detach().amax(-1, keepdim=True))
    context = key_features.transpose(-2, -1) @ at_least_float32(v)
    total = query_features @ key_features.sum(-2, keepdim=True).transpose(-2, -1)
    return (query_features @ context / _nonzero(total)).to(v.dtype)


def _weighted_exp(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """D_j exp(x_jf - top_f) [..., m, r] and top [..., 1, r], the largest x of a live key, without gradient; 0 if none is alive.

    The gradient of a dead key's decision is bounded as in `policy_softmax`; values never differ.
    """
    if weights is None:
        top = x.detach().amax(-2, keepdim=True)
        return torch.exp(x - top), top
    column = weights.to(x.dtype).unsqueeze(-1)
    top = x.detach().masked_fill(column <= 0, -torch.inf).amax(-2, keepdim=True)
    top = torch.where(top > -torch.inf, top, 0.0)
    return torch.exp((x - top).clamp_max(LOUDEST_DEAD_KEY)) * column, top


def _nonzero(total: Tensor) -> Tensor:
    """The sum to divide by; 1 where no key is alive, so that the result is 0."""
    return torch.where(total > 0, total, 1.0)
