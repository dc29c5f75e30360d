"""Linformer's attention in place of softmax, and its projections E and F."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.methods.hooks import AttentionHooks
from foveate.methods.linformer.config import Linformer, places
from foveate.methods.replacement import check_whole_grid
from foveate.nn.linear import linformer
from foveate.nn.mixing import Attention
from foveate.nn.tokens import PREFIX, Tokens


class LinformerHooks(AttentionHooks):
    """E and F [2, rank, columns] of each chosen block, for all its heads.

    A column belongs to a prefix token or to a place of the grid (of one pixel group in MobileViT), so a token keeps its own
    whichever others are gone. The last one is shared by tokens without a place: package tokens and prefix tokens that other
    methods add.
    """

    alike = False

    def __init__(self, config: Linformer, card):
        super().__init__()
        self.card = card
        start = lambda number: neighbour_means(config.rank, places(card, number)).repeat(2, 1, 1)
        self.projections = nn.ParameterDict({str(number): nn.Parameter(start(number)) for number in config.chosen(card)})

    def enter(self, tokens: Tokens) -> Tokens:
        check_whole_grid("linformer", tokens, self.card, "its E and F have a column for each")
        return tokens

    def function(self, block: int, tokens: Tokens, scale: float) -> Attention:
        projections = self.projections[str(block)]
        columns = self._columns(tokens, projections.shape[-1] - 1)
        # A ragged stream is mixed image by image, in order, and each image has columns of its own.
        of_images = iter(columns.split(tokens.lengths) if tokens.ragged else (columns,))

        def attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None) -> Tensor:
            project_k, project_v = projections[..., next(of_images)]
            if project_k.dim() == 3:  # [rank, B, m]
                project_k, project_v = (p.transpose(0, 1).unsqueeze(1) for p in (project_k, project_v))
            return linformer(q, k, v, scale, project_k, project_v, weights)

        return attention

    def _columns(self, tokens: Tokens, last: int) -> Tensor | slice:
        """The column of every token, in the shape of tokens.place."""
        own, first = self.card.prefix_tokens, tokens.place == PREFIX
        if not tokens.pruned and tokens.prefix == own:
            return slice(last)
        order = (first.cumsum(-1) - 1) % max(tokens.prefix, 1)
        column = torch.where(first & (order < own), order, last)
        return torch.where(tokens.place >= 0, tokens.place + own, column)


def neighbour_means(rank: int, tokens: int) -> Tensor:
    """Where E and F start, [rank, tokens + 1]: each row is the mean over a run of neighbouring tokens, all runs about equally long.

    So mixtures are as large as keys and values are. With rank = tokens they are the keys and values themselves, which is softmax
    attention. The last column starts as the mean of all others.
    """
    run = torch.arange(tokens) * rank // tokens
    member = (torch.arange(rank)[:, None] == run).float()
    means = member / member.sum(1, keepdim=True)
    return torch.cat([means, means.mean(1, keepdim=True)], 1)


def build(config: Linformer, card) -> LinformerHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return LinformerHooks(config, card)
