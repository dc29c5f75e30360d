"""Taylor attention of ViTALiTy: softmax attention with exp(x) replaced by 1 + x around mean-centred keys.

All forms here are equal: the closed one (inference and training), Algorithm 1 as written (what the counts and the step
clock speak of) and the dense one (the map itself). Layout: q [..., n, d], k [..., m, d], v [..., m, e] with equal leading
dimensions; weights: decision weights of the keys, broadcastable to [..., m], or None where every key counts 1.
A Taylor weight may be negative: 1 + x is, where a query and a centred key are far from each other. That is the method.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.nn.precision import at_least_float32


def taylor_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """Z = mean(V) + scale Q K_hat^T V / N, with K_hat = K - mean(K), means weighted with D and N = sum_j D_j (semantics.md 9).

    What Algorithm 1 of ViTALiTy yields, since sum_j D_j k_hat_j = 0: the denominator is N for every query. Linear in n and
    m; no tensor has both as dimensions. Keys are centred before the product with V: K^T V - N mean(K) mean(V)^T is the same
    on paper, but where means are large it cancels.

    Half precision: means and centring in float32, the context K_hat^T V is divided by N before Q meets it. bfloat16 keeps its
    fast matrix products, which add up in float32 and have its range; float16, in which the context overflows, is computed
    in float32. Where no key is alive the result is 0. Returns [..., n, e] in v's type.
    """
    dtype = torch.float32 if v.dtype == torch.float16 else v.dtype
    shape = (*q.shape[:-1], v.shape[-1])
    share = None if weights is None else _shares(weights, k)
    # Three dimensions from here: matmul would copy a transposed K_hat element by element, bmm takes it as it is.
    q, k, v_wide = (t.reshape(-1, *t.shape[-2:]).to(dtype) for t in (q, k, v))
    if dtype == torch.bfloat16:
        # Over the views of a joint projection, whose rows lie far apart, products in bfloat16 take up to twice as long.
        k, v_wide = k.contiguous(), v_wide.contiguous()
    k_hat = k - _mean(k, share)
    if share is None:
        scale = scale / k.shape[-2]
    else:
        k_hat = k_hat * share.transpose(-2, -1)
    context = torch.bmm(k_hat.to(dtype).transpose(-2, -1), v_wide) * scale
    return torch.baddbmm(_mean(v_wide, share).to(dtype), q, context).reshape(shape).to(v.dtype)


def taylor_map(q: Tensor, k: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """The Taylor attention map diag^-1(t_D) (1/scale 11^T + Q K_hat^T) [..., n, m]; its rows sum to 1 (Section III-B).

    In float32 or wider, with N / scale for t_D, which it equals. The column of a key has its decision weight as a factor.
    """
    terms = algorithm_terms(q, k, k, scale, weights)
    _centre_keys(terms)
    attention = (1 + scale * (terms["q"] @ terms["k_hat"].transpose(-2, -1))) / terms["n"]
    return attention if weights is None else attention * terms["weights"].transpose(-2, -1)


def taylor_dense(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """`taylor_attention` by way of its n x m map, computed in float32 or wider (Fig. 5); returns v's type."""
    return (taylor_map(q, k, scale, weights) @ at_least_float32(v)).to(v.dtype)


def taylor_algorithm(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 1 of ViTALiTy as written, step by step in float32 or wider: Z in v's type, and all terms by name.

    Deviations: any `scale` s stands where the paper has 1/sqrt(d), so sqrt(d) reads 1/s; decision weights (semantics.md 9).
    It divides by t_D, which is N / s but for rounding: with scores of 1e6 and more float32 is no longer enough for that, and
    where no key is alive the result is NaN. `taylor_attention` has neither weakness.
    """
    terms = algorithm_terms(q, k, v, scale, weights)
    for step in STEPS.values():
        step(terms)
    return terms["z"].to(v.dtype), terms


def algorithm_terms(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor | None = None) -> dict[str, Tensor]:
    """What the first step starts from; every step of STEPS reads its terms here and adds its own.

    weights stand as a column [..., m, 1]; n is the number of keys, or the sum [..., 1, 1] of their weights.
    """
    q, k, v = (at_least_float32(t) for t in (q, k, v))
    terms = {"q": q, "k": k, "v": v, "sqrt_d": q.new_tensor(1 / scale), "n": q.new_tensor(k.shape[-2])}
    if weights is not None:
        column = weights.to(k.dtype).unsqueeze(-1)
        terms |= {"weights": column, "n": column.sum(-2, keepdim=True)}
    return terms


def _counted(terms: dict[str, Tensor], name: str) -> Tensor:
    return terms["weights"] * terms[name] if "weights" in terms else terms[name]


def _centre_keys(terms: dict[str, Tensor]) -> None:
    terms["k_bar"] = _counted(terms, "k").sum(-2, keepdim=True) / terms["n"]
    terms["k_hat"] = terms["k"] - terms["k_bar"]


def _context(terms: dict[str, Tensor]) -> None:
    terms["g"] = terms["k_hat"].transpose(-2, -1) @ _counted(terms, "v")


def _column_sums(terms: dict[str, Tensor]) -> None:
    terms["k_hat_sum"] = _counted(terms, "k_hat").sum(-2, keepdim=True)
    terms["v_sum"] = _counted(terms, "v").sum(-2, keepdim=True)


def _denominator(terms: dict[str, Tensor]) -> None:
    terms["t_d"] = terms["n"] * terms["sqrt_d"] + terms["q"] @ terms["k_hat_sum"].transpose(-2, -1)


def _numerator(terms: dict[str, Tensor]) -> None:
    terms["t_n"] = terms["sqrt_d"] * terms["v_sum"] + terms["q"] @ terms["g"]


def _divide(terms: dict[str, Tensor]) -> None:
    terms["z"] = terms["t_n"] / terms["t_d"]


STEPS: dict[str, Callable[[dict[str, Tensor]], None]] = {
    "k_hat": _centre_keys, "g": _context, "sums": _column_sums, "t_d": _denominator, "t_n": _numerator, "z": _divide}
"""Algorithm 1's steps 1 to 6 in the order of Table II, each reading and adding entries of `algorithm_terms`."""


def _shares(weights: Tensor, k: Tensor) -> Tensor:
    """D_j / N as rows [leading, 1, m], in float32 or wider; 0 where no key is alive."""
    weights = weights.to(torch.promote_types(k.dtype, torch.float32))
    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total > 0, total, 1.0)
    return share.expand(k.shape[:-1]).reshape(-1, 1, k.shape[-2])


def _mean(x: Tensor, share: Tensor | None) -> Tensor:
    """Mean over the keys of x [leading, m, d] -> [leading, 1, d], in float32 or wider."""
    if share is None:
        return x.mean(-2, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    # Not a product with the row of shares: sum adds up in pairs, which for large means is several times more exact.
    return (share.transpose(-2, -1) * x).sum(-2, keepdim=True)
