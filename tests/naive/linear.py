"""Linear and sparse attentions of one head, query by query and key by key, in float64 as the equations stand.

q: [n, d], k: [m, d], v: [m, e], live: decision weights [m].
"""

import math

import torch
from torch import Tensor


def mix(rows: list[list[Tensor]], v: Tensor) -> Tensor:
    """sum_j a_ij v_j of a map given as rows of weights."""
    return torch.stack([sum(row[j] * v[j] for j in range(len(v))) for row in rows])


def normalised(row: list[Tensor]) -> list[Tensor]:
    return [a / sum(row) for a in row]


def taylor_rows(q: Tensor, k: Tensor, scale: float, live: Tensor) -> list[list[Tensor]]:
    """Section III-B of ViTALiTy: softmax over mean-centred keys with exp(x) ~ 1 + x; D weighs the mean and the sums."""
    mean = sum(live[j] * k[j] for j in range(len(k))) / sum(live[j] for j in range(len(k)))
    return [normalised([live[j] * (1 + scale * (q[i] @ (k[j] - mean))) for j in range(len(k))]) for i in range(len(q))]


def taylor(q: Tensor, k: Tensor, v: Tensor, scale: float, live: Tensor) -> Tensor:
    return mix(taylor_rows(q, k, scale, live), v)


def quantised(x: float, low: float, high: float, bits: int) -> float:
    """The nearest of 2^bits levels from low to high (the even one of two equally near)."""
    if high == low:
        return low
    step = (high - low) / (2**bits - 1)
    return low + step * min(max(round((x - low) / step), 0), 2**bits - 1)


def quantised_rows(x: Tensor, live: list[bool], bits: int) -> Tensor:
    """Every entry of x quantised to the range of the live rows (semantics.md 11)."""
    entries = [float(x[j, c]) for j in range(len(x)) if live[j] for c in range(x.shape[1])]
    return torch.tensor([[quantised(float(e), min(entries), max(entries), bits) for e in row] for row in x], dtype=x.dtype)


def strong(q: Tensor, k: Tensor, scale: float, threshold: float, live: Tensor, bits: int, bias: Tensor) -> Tensor:
    """Sanger's mask: softmax of the quantised scores over the live keys exceeds T."""
    alive = [bool(d > 0) for d in live]
    q, k = quantised_rows(q, alive if len(q) == len(k) else [True] * len(q), bits), quantised_rows(k, alive, bits)
    mask = torch.zeros(len(q), len(k), dtype=torch.bool)
    for i in range(len(q)):
        e = {j: math.exp(scale * float(q[i] @ k[j]) + float(bias[i, j])) for j in range(len(k)) if alive[j]}
        for j in e:
            mask[i, j] = e[j] / sum(e.values()) > threshold
    return mask


def survivors(row: Tensor, mask: Tensor) -> Tensor:
    """Softmax weights [m] of one query renormalised over the keys in the mask, or over the largest alone if there is none."""
    kept = [j for j in range(len(row)) if mask[j]] or [max(range(len(row)), key=lambda j: float(row[j].detach()))]
    return torch.stack([row[j] / sum(row[s] for s in kept) if j in kept else 0 * row[j] for j in range(len(row))])


def linformer(q: Tensor, k: Tensor, v: Tensor, scale: float, project_k: Tensor, project_v: Tensor, live: Tensor) -> Tensor:
    """Eq. 7 of Linformer; a key enters its r mixtures with its decision weight."""
    r = len(project_k)
    mixed_k = [sum(project_k[f, j] * live[j] * k[j] for j in range(len(k))) for f in range(r)]
    mixed_v = [sum(project_v[f, j] * live[j] * v[j] for j in range(len(v))) for f in range(r)]
    rows = [normalised([torch.exp(scale * (q[i] @ mixed_k[f])) for f in range(r)]) for i in range(len(q))]
    return mix(rows, torch.stack(mixed_v))


def kernel(q: Tensor, k: Tensor, v: Tensor, phi, live: Tensor) -> Tensor:
    """Attention with the weights phi(q) . phi(k): Eq. 4 of Transformers are RNNs."""
    return mix([normalised([live[j] * (phi(q[i]) @ phi(k[j])) for j in range(len(k))]) for i in range(len(q))], v)


def performer(q: Tensor, k: Tensor, v: Tensor, scale: float, features: Tensor, live: Tensor) -> Tensor:
    """Lemma 1 of Performer: phi(x) = exp(-|x|^2 / 2) / sqrt(r) (exp(w_1 x), ..., exp(w_r x)), scale split between q and k."""
    def phi(x):
        x = x * math.sqrt(scale)
        return torch.exp(-(x @ x) / 2) / math.sqrt(len(features)) * torch.stack([torch.exp(w @ x) for w in features])
    return kernel(q, k, v, phi, live)


def linear_transformer(q: Tensor, k: Tensor, v: Tensor, live: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1, Eq. 7 of Transformers are RNNs."""
    return kernel(q, k, v, lambda x: torch.stack([c + 1 if c > 0 else torch.exp(c) for c in x]), live)


def efficient(q: Tensor, k: Tensor, v: Tensor, live: Tensor) -> Tensor:
    """Efficient Attention with softmax normalisation: each channel's weights over the tokens make one global context vector."""
    context = []
    for c in range(k.shape[1]):
        shares = normalised([live[j] * torch.exp(k[j, c]) for j in range(len(k))])
        context.append(sum(shares[j] * v[j] for j in range(len(v))))
    return mix([normalised([torch.exp(c) for c in q[i]]) for i in range(len(q))], torch.stack(context))
