"""Efficient Attention in place of softmax."""

from __future__ import annotations

from foveate.methods.efficient.config import Efficient
from foveate.methods.hooks import AttentionHooks
from foveate.nn.linear import efficient
from foveate.nn.mixing import Attention
from foveate.nn.tokens import Tokens


class EfficientHooks(AttentionHooks):
    """softmax(Q) (softmax(K)^T V), without the backbone's scale."""

    def function(self, block: int, tokens: Tokens, scale: float) -> Attention:
        return efficient


def build(config: Efficient, card) -> EfficientHooks:
    """The modules of `config`: it has no parameters."""
    return EfficientHooks()
