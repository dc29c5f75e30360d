"""IRET one image at a time: tokens are a list, forgetting removes from it, focus appends to what is left (Figs. 8 and 10, section IV.A)."""

import torch
from torch import Tensor

from naive.selector import layer_norm
from naive.vit import block, depth_of, under


def class_row(weights: dict[str, Tensor], x: Tensor, heads: int) -> list[float]:
    """The first row of softmax(Q K^T / sqrt(d)) (Eq. 1), the mean over heads, for the tokens x [n, D] that enter a block."""
    y = torch.stack([layer_norm(row, weights["norm1.weight"], weights["norm1.bias"], 1e-6) for row in x])
    q, k, _ = (y @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]).chunk(3, dim=1)
    width, row = x.shape[1] // heads, [0.0] * len(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = [float(q[0, part] @ k[j, part]) / width**0.5 for j in range(len(x))]
        exponentials = [torch.tensor(s - max(scores), dtype=x.dtype).exp().item() for s in scores]
        row = [r + e / sum(exponentials) / heads for r, e in zip(row, exponentials)]
    return row


def remaining(row: list[float], places: list[int], prefix: int, threshold: float) -> list[int]:
    """The places whose attention reaches the threshold; the best one where none does."""
    kept = [place for place, value in zip(places, row[prefix:]) if value >= threshold]
    return kept or [max(zip(row[prefix:], places), key=lambda pair: pair[0])[1]]


def widen(weights: dict[str, Tensor], x: Tensor, places: list[int], band: Tensor | None, prefix: int, columns: int, patch: int) -> Tensor:
    """Each token with its new features behind the old: the embedding of the band's patch at its place, and its position there."""
    rows = [torch.cat([x[i], weights["prefix_embed"][0, i] + weights["pos_embed"][0, i]]) for i in range(prefix)]
    for token, place in zip(x[prefix:], places):
        new = weights["pos_embed"][0, prefix + place]
        if band is not None:
            top, left = place // columns * patch, place % columns * patch
            pixels = band[:, top : top + patch, left : left + patch].flatten()
            new = new + weights["embed.weight"] @ pixels + weights["embed.bias"]
        rows.append(torch.cat([token, new]))
    return torch.stack(rows)


def iret(weights: dict[str, Tensor], x: Tensor, bands: Tensor, heads: int, layers: tuple[int, ...], thresholds: tuple[float, ...], samples: int,
         columns: int, patch: int, skipped: tuple[int, ...] = ()) -> tuple[Tensor, list[list[int]]]:
    """Logits and the places left before each IRET layer, for the first tokens x [2 + N, D] and sub-bands [layers, C, h, w] of one image.

    layers: 1-based blocks. samples: sub-bands used. skipped: blocks whose attention is left out, which keep the row of the last active one.
    """
    prefix, places, left, row = 2, list(range(len(x) - 2)), [], {}
    for number in range(1, depth_of(weights) + 1):
        if number in layers:
            at = layers.index(number)
            known = [row.get(place, 0.0) for place in (-2, -1, *places)]
            kept = remaining(known, places, prefix, thresholds[at])
            x = torch.stack([*x[:prefix], *(token for token, place in zip(x[prefix:], places) if place in kept)])
            places = kept
            left.append(kept)
            x = widen(under(weights, f"focus.{at}."), x, places, bands[at] if at < samples else None, prefix, columns, patch)
        own = under(weights, f"blocks.{number - 1}.")
        if number in skipped:
            own = own | {"attn.proj.weight": torch.zeros_like(x[0]).outer(x[0]), "attn.proj.bias": torch.zeros_like(x[0])}
        else:
            row = dict(zip((-2, -1, *places), class_row(own, x, heads)))
        x = block(own, x, torch.ones(len(x), dtype=x.dtype), heads)
    logits = [weights[f"{head}.weight"] @ layer_norm(x[i], weights["norm.weight"], weights["norm.bias"], 1e-6) + weights[f"{head}.bias"]
              for i, head in enumerate(("head", "head_dist"))]
    return sum(logits) / 2, left
