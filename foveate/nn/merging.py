"""Merging alike tokens: bipartite soft matching (section 3 of ToMe, arXiv:2210.09461) and means weighted with the tokens' sizes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.attention import Fused, attend, is_fused, masked_attention
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens, from_rows


def merged_count(patches: int, r: int) -> int:
    """Patches that are left when `r` of `patches` are merged into others: never more than half of them leave."""
    return patches - min(r, patches // 2)


def likeness(keys: Tensor) -> Tensor:
    """What two tokens are compared by, as rows whose product is a cosine: the mean of the keys over heads, [..., H, d] -> [..., d]."""
    return F.normalize(at_least_float32(keys).mean(-2), dim=-1)


def merge_uniform(tokens: Tokens, keys: Tensor, r: int) -> Tokens:
    """Uniform form with static shapes: r patches of each image join their most alike ones of the other set (see `match`).

    keys: [B, n, H, d] of all tokens. Every second patch, the first included, is of set A, the others of set B.
    """
    start, stop, count = tokens.patches.start, tokens.patches.stop, tokens.x.shape[1]
    r = min(r, (stop - start) // 2)
    if not r:
        return replace(tokens, place=tokens.places(), sizes=sizes_of(tokens))
    alike = likeness(keys[:, start:stop])
    best, target = (alike[:, ::2] @ alike[:, 1::2].transpose(1, 2)).max(-1)
    source = torch.topk(best, r, dim=1, sorted=False).indices
    source, target = start + 2 * source, start + 2 * target.gather(1, source) + 1
    # What stays, in order and without a sort: every row's number among those that stay is where that row goes, the sources share a spare place.
    place, images = tokens.places(), source.shape[0]
    numbers = torch.arange(count, device=place.device).expand(images, -1)
    stays = torch.ones_like(numbers).scatter(1, source, 0)
    goes = torch.where(stays > 0, stays.cumsum(1) - 1, count - r)
    rows = numbers.new_zeros(images, count - r + 1).scatter(1, goes, numbers)[:, : count - r]
    sizes = sizes_of(tokens)
    size = torch.where(place >= 0, sizes.gather(1, place.clamp_min(0)), 1.0)
    joins = (rows[..., None] == target[:, None]) * size.gather(1, source)[:, None]
    before, total = size.gather(1, rows), joins.sum(-1)
    share = (before / (before + total))[..., None], joins / (before + total)[..., None]
    first, x = torch.arange(images, device=place.device)[:, None] * count, tokens.x.flatten(0, 1)
    x = x[rows + first] * share[0].to(x.dtype) + share[1].to(x.dtype) @ x[source + first]
    sizes = sizes.scatter_add(1, place.gather(1, target), size.gather(1, source))
    return replace(tokens, x=x, place=place.gather(1, rows), sizes=sizes)


def merge_masked(tokens: Tokens, keys: Tensor, r: int, kept: Tensor | None = None) -> Tokens:
    """Masked form: sources die, and what they merged into is their mean; gradients flow through the mean.

    keys: [B, n, H, d]. kept: which patches are to live on [B, slots] (bool), instead of a free match.
    """
    start, stop = tokens.patches.start, tokens.patches.stop
    live = tokens.live[:, start:stop]
    source, target = match(likeness(keys[:, start:stop]), live > 0, r, kept)
    x, sizes = merged(tokens.x[:, start:stop], sizes_of(tokens), live, source, target)
    after = torch.cat([tokens.live[:, :start], live * ~source, tokens.live[:, stop:]], 1)
    return replace(tokens, x=torch.cat([tokens.x[:, :start], x, tokens.x[:, stop:]], 1), live=after, sizes=sizes)


def merge_rows(tokens: Tokens, keys: Tensor, r: int, kept: Tensor | None = None) -> Tokens:
    """Packed form with per-image counts, through the slots of the grid; arguments as in `merge_masked`, keys also ragged [T, H, d]."""
    x, image, place = tokens.x.reshape(-1, tokens.x.shape[-1]), tokens.image_of_row(), tokens.places().flatten()
    images, slots, patch = tokens.images, tokens.grid[0] * tokens.grid[1], place >= 0
    slot = image * slots + place.clamp_min(0)

    def field(rows: Tensor) -> Tensor:
        return rows.new_zeros(images * slots, rows.shape[-1]).index_copy(0, slot[patch], rows[patch]).unflatten(0, (images, slots))

    live = field(at_least_float32(x).new_ones(x.shape[0], 1))[..., 0]
    source, target = match(field(likeness(keys).flatten(0, -2)), live > 0, r, kept)
    mixed, sizes = merged(field(x), sizes_of(tokens), live, source, target)
    x = torch.where(patch[:, None], mixed.flatten(0, 1)[slot], x)
    stays = ~(patch & source.flatten()[slot])
    return from_rows(replace(tokens, sizes=sizes), x[stays], image[stays], place[stays])


def match(alike: Tensor, live: Tensor, r: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: who merges (bool [B, m]) into whom ([B, m], read where the first says so).

    alike: rows of `likeness` [B, m, d]. live: bool [B, m]; the first live patch, the third, ... are set A, the others B. Each patch of A
    looks at the most alike one of B; the r most alike of these pairs merge, of an image never more than half of its patches.
    kept: bool [B, m], repeats a match: what is not in it merges into the most alike patch of B that is, or of all that are.
    """
    others = live & (live.cumsum(1) % 2 == 0)
    if kept is not None:
        stay = live & kept
        others = torch.where((others & stay).any(1, keepdim=True), others & stay, stay)
    best, target = (alike @ alike.transpose(1, 2)).masked_fill(~others[:, None], -torch.inf).max(-1)
    if kept is not None:
        return live & ~kept, target
    count = (live.sum(1, keepdim=True) // 2).clamp_max(r)
    first = live & ~others
    rank = best.masked_fill(~first, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return first & (rank < count), target


def merged(x: Tensor, sizes: Tensor, live: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, sizes) after each `source` has joined its `target`: means weighted with sizes, x [B, m, D], the others [B, m].

    live: decision weights, which a source brings along.
    """
    slots = torch.arange(x.shape[1], device=x.device)
    joins = (target[:, None] == slots[:, None]) * (source * live * sizes)[:, None]
    total = sizes + joins.sum(-1)
    return x * (sizes / total)[..., None].to(x.dtype) + (joins / total[..., None]).to(x.dtype) @ x, total


def sizes_of(tokens: Tokens) -> Tensor:
    """`tokens.sizes`, or ones where nothing was merged yet: [B, slots]."""
    if tokens.sizes is not None:
        return tokens.sizes
    return at_least_float32(tokens.x).new_ones(tokens.images, tokens.grid[0] * tokens.grid[1])


def sized_attention(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: Fused = True, dropout: float = 0.0) -> Tensor:
    """`attend` in which a key counts as many times as its token is patches: softmax(Q K^T / sqrt(d) + log s) V (Eq. 1 of ToMe)."""
    if tokens.sizes is None:
        return attend(q, k, v, tokens, scale, fused, dropout)
    bias = tokens.size_of_rows().log()
    if tokens.ragged:
        parts = zip(*(t.transpose(0, 1)[None].split(tokens.lengths, 2) for t in (q, k, v)), bias[None, None, None].split(tokens.lengths, 3))
        return torch.cat([_biased(*part, scale, fused, dropout)[0] for part in parts], 1).transpose(0, 1)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if tokens.masked:
        return masked_attention(q, k, v, tokens.live, scale, bias[:, None, None], dropout).transpose(1, 2)
    return _biased(q, k, v, bias[:, None, None], scale, fused, dropout).transpose(1, 2)


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, fused: Fused, dropout: float) -> Tensor:
    """Softmax attention [B, H, n, d] with `bias` [..., m] added to the scores of the keys."""
    if is_fused(fused, q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale, dropout_p=dropout)
    weights = ((q * scale) @ k.transpose(-2, -1) + bias.to(q.dtype)).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v
