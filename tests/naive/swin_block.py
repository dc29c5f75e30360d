"""One Swin block under keep decisions, in float64 and token by token (semantics.md 7)."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def layer_norm(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def region(r: int, c: int, size: tuple, window: tuple, shift: tuple) -> tuple:
    """Which of the pieces that the roll brought together a place of the rolled, padded grid belongs to."""
    def part(i, n, w, s):
        return 0 if s == 0 else 0 if i < n - w else 1 if i < n - s else 2
    return part(r, size[0], window[0], shift[0]), part(c, size[1], window[1], shift[1])


def swin_block(x, live, packages, p, grid, window, shift, heads):
    """The new patches [slots, D] and packages [P, D] of one image; entries of dead patches are NaN.

    x: [slots, D]; live: [slots] of 0 and 1; packages: [P, D]; p: parameters of timm's block by name, as float64 arrays.
    """
    rows, columns = grid
    size = tuple(-(-n // w) * w for n, w in zip(grid, window))
    d = x.shape[1] // heads
    zero = np.zeros(x.shape[1])

    def qkv(normed):
        return linear(normed, p, "attn.qkv").reshape(3, heads, d)

    standing = {}
    for r in range(rows):
        for c in range(columns):
            standing[(r - shift[0]) % rows, (c - shift[1]) % columns] = r * columns + c
    padding, alone = qkv(zero), [qkv(layer_norm(t, p, "norm1")) for t in packages]

    def mlp(t):
        hidden = linear(layer_norm(t, p, "norm2"), p, "mlp.fc1")
        return t + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p, "mlp.fc2")

    new = np.full(x.shape, np.nan)
    for (r, c), slot in standing.items():
        if not live[slot]:
            continue
        q = qkv(layer_norm(x[slot], p, "norm1"))[0]
        mixed = np.zeros((heads, d))
        for h in range(heads):
            terms = [(q[h] @ key[1][h] * d ** -0.5, key[2][h]) for key in alone]
            top, left = r // window[0] * window[0], c // window[1] * window[1]
            for kr in range(top, top + window[0]):
                for kc in range(left, left + window[1]):
                    other = standing.get((kr, kc))
                    if other is not None and not live[other]:
                        continue
                    key = padding if other is None else qkv(layer_norm(x[other], p, "norm1"))
                    relative = (r - kr + window[0] - 1) * (2 * window[1] - 1) + c - kc + window[1] - 1
                    score = q[h] @ key[1][h] * d ** -0.5 + p["attn.relative_position_bias_table"][relative, h]
                    if region(r, c, size, window, shift) != region(kr, kc, size, window, shift):
                        score -= 100.0
                    terms.append((score, key[2][h]))
            weights = np.exp([t[0] for t in terms])
            mixed[h] = sum(w * t[1] for w, t in zip(weights, terms)) / weights.sum()
        new[slot] = mlp(x[slot] + linear(mixed.ravel(), p, "attn.proj"))
    return new, np.array([mlp(t + linear(key[2].ravel(), p, "attn.proj")) for t, key in zip(packages, alone)]).reshape(packages.shape)
