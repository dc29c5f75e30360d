"""Performer's attention in place of softmax, and the random directions it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.methods.hooks import AttentionHooks
from foveate.methods.performer.config import Performer
from foveate.nn.linear import orthogonal_features, performer
from foveate.nn.mixing import Attention
from foveate.nn.tokens import Tokens


class PerformerHooks(AttentionHooks):
    """FAVOR+ with directions [r, d] for each chosen block, buffers that are drawn once and saved with the model."""

    def __init__(self, config: Performer, card):
        super().__init__()
        dice = torch.Generator().manual_seed(config.seed)
        for number in config.chosen(card):
            width = card.block(number).head_dim
            self.register_buffer(f"directions_{number}", orthogonal_features(config.features_of(width), width, dice))

    def function(self, block: int, tokens: Tokens, scale: float) -> Attention:
        directions = self.get_buffer(f"directions_{block}")

        def attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None) -> Tensor:
            return performer(q, k, v, scale, directions, weights)

        return attention


def build(config: Performer, card) -> PerformerHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return PerformerHooks(config, card)
