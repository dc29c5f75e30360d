"""Pruning patch tokens: from keep decisions to the next token stream, in every form."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import PACKAGE, Tokens, from_rows


def gumbel_keep(probabilities: Tensor, noise: float = 1.0) -> Tensor:
    """Hard keep decisions D with the gradient of the soft ones (Eq. 7 of SPViT): Gumbel-softmax on log T, tau = 1.

    probabilities: [..., 2], keep first. noise: scale of the Gumbel noise, 1 as in the paper, 0 for none: then D is what
    inference decides. Returns [...] of exact zeros and ones.
    """
    logits = at_least_float32(probabilities).clamp_min(torch.finfo(torch.float32).tiny).log()
    gumbel = -torch.empty_like(logits).exponential_().log()
    soft = (logits + noise * gumbel).softmax(-1)
    hard = (soft[..., 0] >= soft[..., 1]).to(soft.dtype)
    return hard + (soft[..., 0] - soft[..., 0].detach())


def at_least_one(keep: Tensor, live: Tensor, score: Tensor) -> Tensor:
    """Lets the best-scored live patch of an image live on where `keep` would drop them all (semantics.md 4).

    keep, live, score: [B, m]; gradients flow through `keep` untouched.
    """
    best = torch.zeros_like(keep).scatter(1, score.detach().masked_fill(live <= 0, -torch.inf).argmax(1, keepdim=True), 1.0)
    empty = ((keep * live).sum(1, keepdim=True) == 0).to(keep.dtype)
    return keep + empty * best * (1 - keep).detach()


def top_k(score: Tensor, live: Tensor | None, k: int) -> Tensor:
    """Indices [B, k] of the best-scored live patches in grid order; score [B, m]."""
    score = score if live is None else score.masked_fill(live <= 0, -torch.inf)
    return torch.topk(score, k, dim=1, sorted=False).indices.sort(dim=1).values


def package(x: Tensor, weight: Tensor) -> Tensor:
    """Eq. 8 of SPViT: P = sum_i n_i m_i[0] / sum_i m_i[0] over dropped tokens.

    x: [B, m, D]; weight [B, m]: keep probability m_i[0] of dropped tokens, zero for all others. Returns [B, D] in
    x's type (summed in float32); images that dropped nothing get zeros.
    """
    weight = weight.to(at_least_float32(x).dtype)
    total = weight.sum(1, keepdim=True)
    return ((weight / torch.where(total > 0, total, 1.0))[:, None] @ at_least_float32(x))[:, 0].to(x.dtype)


def prune_masked(tokens: Tokens, keep: Tensor, score: Tensor, package_on: bool) -> Tokens:
    """Masked form: multiplies the decisions (D * D') and appends a package token, alive where something was dropped.

    keep: [B, m] decisions with gradient; score: [B, m] keep probabilities.
    """
    before = tokens.live[:, tokens.patches]
    after = before * keep
    live = torch.cat([tokens.live[:, : tokens.prefix], after, tokens.live[:, tokens.patches.stop:]], 1)
    if not package_on:
        return replace(tokens, live=live)
    dropped = before - after
    # Nothing may flow back from a division by a vanishing sum, hence the floor on scores.
    token = package(tokens.x[:, tokens.patches], dropped * score.clamp_min(1e-6))
    alive = (dropped.detach().sum(1, keepdim=True) > 0).to(live.dtype)
    place = torch.cat([tokens.place, tokens.place.new_full((1,), PACKAGE)])
    return replace(tokens, x=torch.cat([tokens.x, token[:, None]], 1), live=torch.cat([live, alive], 1), place=place,
                   packages=tokens.packages + 1)


def prune_top_k(tokens: Tokens, score: Tensor, k: int, package_on: bool, weight: Tensor | None = None) -> Tokens:
    """Uniform form with static shapes: keeps the k best-scored patches of each image, packages the others.

    score: [B, m] keep probabilities of the patches present. weight: their weights in the package token, `score` by default.
    """
    patches, place, count = tokens.patches, tokens.places(), tokens.x.shape[1]
    sides = (patches.start, count - patches.stop)
    # Prefix and package tokens score best of all, so that one gather takes everything that stays: slices, gathers and a
    # concatenation in place of it cost four times as much in OpenVINO.
    rows = top_k(F.pad(score, sides, value=torch.inf), None, k + sum(sides))
    first = torch.arange(rows.shape[0], device=rows.device)[:, None] * count
    parts, places, packages = [tokens.x.flatten(0, 1)[rows + first]], [place.gather(1, rows)], tokens.packages
    if package_on and k < score.shape[1]:
        dropped = F.pad(score if weight is None else weight, sides).clamp_min(1e-6).scatter(1, rows, 0.0)
        parts.append(package(tokens.x[:, patches], dropped[:, patches])[:, None])
        places.append(place.new_full((place.shape[0], 1), PACKAGE))
        packages += 1
    return replace(tokens, x=torch.cat(parts, 1), place=torch.cat(places, 1), packages=packages)


def prune_rows(tokens: Tokens, keep: Tensor, score: Tensor, package_on: bool) -> Tokens:
    """Packed form with per-image counts: keep, score [R] for every row of x (prefix and package rows are always kept)."""
    x, image, place = tokens.x.reshape(-1, tokens.x.shape[-1]), tokens.image_of_row(), tokens.places().flatten()
    keep = keep | (place < 0)
    # Rows by number: with a mask, or a list in brackets, torch takes ten times as long on a CPU.
    kept = keep.nonzero()[:, 0]
    rows, images, places = (t.index_select(0, kept) for t in (x, image, place))
    if package_on:
        gone = (~keep).nonzero()[:, 0]
        wide = at_least_float32(x.index_select(0, gone))
        weight, of = score.index_select(0, gone).to(wide.dtype).clamp_min(1e-6), image.index_select(0, gone)
        total = wide.new_zeros(tokens.images).index_add(0, of, weight)
        token = wide.new_zeros(tokens.images, x.shape[1]).index_add(0, of, wide * weight[:, None])
        some = (total > 0).nonzero()[:, 0]
        token = (token.index_select(0, some) / total.index_select(0, some)[:, None]).to(x.dtype)
        rows = torch.cat([rows, token])
        images = torch.cat([images, some])
        places = torch.cat([places, torch.full_like(some, PACKAGE)])
    return from_rows(tokens, rows, images, places)
