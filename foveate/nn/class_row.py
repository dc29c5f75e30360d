"""What the class token attends to: one row of the score maps, the mean over heads, in the three forms of the token stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foveate.nn.attention import Mix, attend, is_fused, policy_softmax
from foveate.nn.explicit import explicit_with_rows
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens


def class_row(q: Tensor, k: Tensor, tokens: Tokens, scale: float) -> Tensor:
    """Softmax of the first token's query against the keys of its own image, the mean over heads: O(n d) (semantics.md 12).

    q, k: [B, n, H, d], or ragged [T, H, d]. Returns float32 or wider [B, n], or ragged [T]; each image's row sums to 1. In the masked
    form dead tokens have 0.
    """
    return class_rows(q, k, tokens, scale).mean(-1)


def class_rows(q: Tensor, k: Tensor, tokens: Tokens, scale: float) -> Tensor:
    """As `class_row`, one row a head: [B, n, H], or ragged [T, H]. Merged tokens weigh as much as they are patches."""
    if tokens.ragged:
        return _ragged_rows(q, k, tokens, scale)
    scores = (q[:, :1] * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    if tokens.sizes is not None:
        scores = scores + tokens.size_of_rows().log()[:, None, None]
    weights = policy_softmax(scores, tokens.live) if tokens.masked else at_least_float32(scores).softmax(-1)
    return weights[:, :, 0].transpose(1, 2)


def _ragged_rows(q: Tensor, k: Tensor, tokens: Tokens, scale: float) -> Tensor:
    image = tokens.image_of_row()
    starts = torch.tensor((0, *tokens.lengths[:-1]), device=q.device).cumsum(0)
    scores = at_least_float32(((q[starts] * scale)[image] * k).sum(-1))
    if tokens.sizes is not None:
        scores = scores + tokens.size_of_rows().log()[:, None]
    rows = image[:, None].expand_as(scores)
    top = scores.new_full((tokens.images, scores.shape[1]), -torch.inf).scatter_reduce(0, rows, scores, "amax")
    weights = (scores - top[image]).exp()
    total = weights.new_zeros(top.shape).scatter_add(0, rows, weights)
    return weights / total[image]


@dataclass(frozen=True)
class Watched:
    """What one block's attention looked at.

    block: 1-based. tokens: those that attended. rows: as `class_rows` gives them. k, v: their keys [B, n, H, d] and values [B, n, H, e], or ragged [T, H, .].
    """

    block: int
    tokens: Tokens
    rows: Tensor
    k: Tensor
    v: Tensor

    @cached_property
    def row(self) -> Tensor:
        """The mean over heads, as `class_row` gives it."""
        return self.rows.mean(-1)

    def select(self, images: Tensor) -> "Watched":
        """The same for some of the images, `images` [b] by number and increasing."""
        rows = torch.isin(self.tokens.image_of_row(), images) if self.tokens.ragged else images
        return Watched(self.block, self.tokens.select(images), self.rows[rows], self.k[rows], self.v[rows])

    def row_at(self, tokens: Tokens) -> Tensor:
        """The row at `tokens`, a later state of the stream in which some may be gone: [B, n], or ragged [T].

        It is for patches: prefix tokens may have 0, and package tokens made since do.
        """
        return self.at(tokens, self.row)

    def at(self, tokens: Tokens, values: Tensor) -> Tensor:
        """`values` [B, n], or ragged [T], of those that attended, at a later state of the stream as `row_at` gives the row."""
        if tokens.place is self.tokens.place and tokens.x.shape[:-1] == self.tokens.x.shape[:-1]:
            return values
        slots, prefix = self.tokens.grid[0] * self.tokens.grid[1], 1
        kept = values.new_zeros(self.tokens.images, prefix + slots)
        kept = kept.flatten().scatter(0, _slot(self.tokens, prefix + slots), values.flatten() * (self.tokens.places().flatten() >= 0))
        here = kept[_slot(tokens, prefix + slots)] * (tokens.places().flatten() >= 0)
        return here if tokens.ragged else here.view(tokens.x.shape[:2])


def _slot(tokens: Tokens, width: int) -> Tensor:
    """Where each row stands in [images, 1 + slots]; what is no patch shares slot 0."""
    return tokens.image_of_row() * width + (tokens.places().flatten() + 1).clamp_min(0)


def watched(mix: Mix, block: int, found: list[Watched]) -> Mix:
    """The same attention as `mix`, which also appends to `found` what the class token attended to in block `block`.

    Where softmax attention spells its products out anyway, the row is read off its map; otherwise it costs one query.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool = True, dropout: float = 0.0, **rest: Any) -> Tensor:
        spelled = mix is attend and not (tokens.ragged or tokens.masked or dropout)
        if spelled and not is_fused(fused, q.transpose(1, 2), k.transpose(1, 2)):
            z, rows = explicit_with_rows(*(t.transpose(1, 2) for t in (q, k, v)), scale)
            z, rows = z.transpose(1, 2), at_least_float32(rows).transpose(1, 2)
        else:
            z, rows = mix(q, k, v, tokens, scale, fused, dropout, **rest), class_rows(q, k, tokens, scale)
        found.append(Watched(block, tokens, rows, k, v))
        return z

    return run
