"""ToMe's matching and merging, and ATS's sampling, token by token."""

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def matches(keys: Tensor, alive: list[bool], r: int) -> list[tuple[int, int]]:
    """Section 3 of ToMe: (source, target) of the merges of one image; keys [n, H, d], the mean over heads is compared."""
    mean = keys.double().mean(1)
    there = [i for i in range(len(keys)) if alive[i]]
    first, other = there[0::2], there[1::2]
    edges = []
    for i in first:
        best = max(other, key=lambda j: cosine(mean[i], mean[j]), default=None)
        if best is not None:
            edges.append((cosine(mean[i], mean[best]), i, best))
    edges.sort(key=lambda edge: -edge[0])
    return [(i, j) for _, i, j in edges[: min(r, len(there) // 2)]]


def merge(x: Tensor, sizes: list[float], pairs: list[tuple[int, int]]) -> tuple[Tensor, list[float]]:
    """Tokens [n, D] and sizes after the merges: a target becomes the mean of itself and all that join it, weighted with sizes."""
    out, grown = x.double().clone(), list(sizes)
    for target in {j for _, j in pairs}:
        joining = [i for i, j in pairs if j == target]
        grown[target] = sizes[target] + sum(sizes[i] for i in joining)
        out[target] = (sizes[target] * out[target] + sum(sizes[i] * x[i].double() for i in joining)) / grown[target]
    return out, grown


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, sizes: list[float], scale: float) -> Tensor:
    """Eq. 1 of ToMe: softmax(Q K^T / sqrt(d) + log s) V of one head: q, k [n, d], v [n, e], by repeating each key as often as its size."""
    repeats = torch.tensor([int(s) for s in sizes])
    keys, values = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    return ((q * scale) @ keys.T).softmax(-1) @ values


def significance(rows: Tensor, v: Tensor) -> list[float]:
    """Token scoring in ATS, summed over heads: A_1j ||V_j|| over the sum of all patches; rows [n, H], v [n, H, e], without the class token."""
    raw = [sum(float(rows[j, h]) * float(v[j, h].norm()) for h in range(rows.shape[1])) for j in range(len(rows))]
    return [s / sum(raw) for s in raw]


def drawn(share: list[float], samples: int) -> set[int]:
    """Token sampling in ATS: the tokens on whose step of the cumulative distribution a point (2k - 1) / (2K) lies."""
    found = set()
    for k in range(1, samples + 1):
        point, total = (2 * k - 1) / (2 * samples), 0.0
        for j, s in enumerate(share):
            total += s
            if total >= point:
                found.add(j)
                break
    return found
