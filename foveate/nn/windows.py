"""Attention inside windows of a patch grid of which some slots are dead, with package tokens as extra keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.attention import masked_attention
from foveate.nn.tokens import PACKAGE, Tokens


@dataclass(frozen=True)
class Windows:
    """How a shifted, padded grid falls into windows.

    slots: [windows, area], the grid slot at each place of each window, -1 for padding.
    position: [grid slots], the place (window * area + place in it) of each slot. padded: whether there is padding.
    """

    slots: Tensor
    position: Tensor
    padded: bool


def partition(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device) -> Windows:
    """Windows of window[0] x window[1] slots over a grid rolled back by `shift` and then padded at its end."""
    rows, columns = grid
    slots = torch.arange(rows * columns, device=device).view(rows, columns).roll((-shift[0], -shift[1]), (0, 1))
    below, right = -rows % window[0], -columns % window[1]
    slots = F.pad(slots, (0, right, 0, below), value=-1)
    slots = slots.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2).flatten(2).flatten(0, 1)
    position = slots.flatten().argsort()[slots.numel() - rows * columns:]
    return Windows(slots, position, below + right > 0)


@dataclass(frozen=True)
class Keys:
    """Which rows of x.flatten(0, 1) (ragged: of x) stand in the windows, and how much each counts.

    rows: [B, windows, area + P], the last P being package tokens; padding points behind the last row of x, a dead
    slot at any row. weights: [B, windows, area + P], decision weights, 0 for dead slots and 1 for padding.
    """

    rows: Tensor
    weights: Tensor
    packages: int


def window_keys(tokens: Tokens, windows: Windows) -> Keys:
    """The keys of every window, in any form of the token stream."""
    images, slots = tokens.images, tokens.grid[0] * tokens.grid[1]
    total = tokens.x.shape[0] if tokens.ragged else tokens.x.shape[0] * tokens.x.shape[1]
    rows, weights = _slot_rows(tokens, images, slots, total)
    inside = windows.slots.clamp_min(0).flatten()
    rows, weights = (t.index_select(1, inside).unflatten(1, windows.slots.shape) for t in (rows, weights))
    if windows.padded:
        rows = torch.where(windows.slots >= 0, rows, total)
        weights = torch.where(windows.slots >= 0, weights, 1.0)
    extra, extra_weights = _package_rows(tokens, images)
    everywhere = (images, len(windows.slots), extra.shape[1])
    return Keys(torch.cat([rows, extra[:, None].expand(everywhere)], 2),
                torch.cat([weights, extra_weights[:, None].expand(everywhere)], 2), extra.shape[1])


def _slot_rows(tokens: Tokens, images: int, slots: int, total: int) -> tuple[Tensor, Tensor]:
    """Row and weight of every grid slot, both [B, slots]."""
    device = tokens.x.device
    if tokens.place.dim() == 1 and not tokens.ragged:
        first = torch.arange(images, device=device)[:, None] * tokens.x.shape[1] + tokens.prefix
        rows = first + torch.arange(slots, device=device)
        return rows, tokens.live[:, tokens.patches] if tokens.masked else torch.ones(images, slots, device=device)
    place = tokens.places().flatten()
    # Rows without a slot go to a spare one at the end.
    target = torch.where(place >= 0, tokens.image_of_row() * slots + place, images * slots)
    rows = torch.zeros(images * slots + 1, dtype=torch.long, device=device).index_copy(0, target, torch.arange(total, device=device))
    alive = torch.zeros(images * slots + 1, device=device).scatter(0, target, 1.0)
    return rows[:-1].view(images, slots), alive[:-1].view(images, slots)


def _package_rows(tokens: Tokens, images: int) -> tuple[Tensor, Tensor]:
    """Row and weight of every package token, both [B, P]; images with fewer than P have weights of zero."""
    device = tokens.x.device
    if tokens.packages is None:
        rows = (tokens.place[0] == PACKAGE).nonzero().T
        return rows, torch.ones_like(rows, dtype=torch.float32)
    if not tokens.ragged:
        length = tokens.x.shape[1]
        last = torch.arange(length - tokens.packages, length, device=device)
        rows = torch.arange(images, device=device)[:, None] * length + last
        weights = tokens.live[:, tokens.patches.stop:] if tokens.masked else torch.ones(rows.shape, device=device)
        return rows, weights
    packaged = tokens.place == PACKAGE
    counts = torch.bincount(tokens.image_of_row()[packaged], minlength=images)
    back = torch.arange(1, int(counts.max()) + 1, device=device)
    ends = torch.tensor(tokens.lengths, device=device).cumsum(0)
    own = back <= counts[:, None]
    return torch.where(own, ends[:, None] - back, 0), own.float()


def window_attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool, dropout: float,
                  weights: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention inside windows; a dead key counts for nothing but itself.

    q: [W, area, H, d]; k, v: [W, area + P, H, d] for W windows of all images; weights: [W, area + P].
    bias: [1 or W, H, area, area + P], positions and shift. tokens: the stream (its form decides the arithmetic).
    Returns [W, area, H, d].
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if tokens.masked:
        return masked_attention(q, k, v, weights, scale, bias, dropout).transpose(1, 2)
    own = torch.eye(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    bias = torch.where((weights[:, None, None, :] > 0) | own, bias, -torch.inf)
    if fused:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout, scale=scale)
    else:
        scores = ((q * scale) @ k.transpose(-2, -1) + bias).softmax(-1)
        mixed = (F.dropout(scores, dropout) if dropout else scores).to(v.dtype) @ v
    return mixed.transpose(1, 2)
