"""The Linear Transformer's attention in place of softmax."""

from __future__ import annotations

from foveate.methods.hooks import AttentionHooks
from foveate.methods.lineartransformer.config import LinearTransformer
from foveate.nn.linear import linear_transformer
from foveate.nn.mixing import Attention
from foveate.nn.tokens import Tokens


class LinearTransformerHooks(AttentionHooks):
    """phi(Q) phi(K)^T V with phi(x) = elu(x) + 1, without the backbone's scale."""

    def function(self, block: int, tokens: Tokens, scale: float) -> Attention:
        return linear_transformer


def build(config: LinearTransformer, card) -> LinearTransformerHooks:
    """The modules of `config`: it has no parameters."""
    return LinearTransformerHooks()
