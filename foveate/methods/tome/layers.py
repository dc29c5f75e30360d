"""ToMe's attention, which counts merged tokens by their sizes, and the merging behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.methods.hooks import Hooks, Run
from foveate.methods.tome.config import ToMe
from foveate.nn.attention import Mix
from foveate.nn.merging import merge_masked, merge_rows, merge_uniform, sized_attention
from foveate.nn.tokens import Tokens, with_all_live


class ToMeHooks(Hooks):
    """Nothing to learn: what merges follows from the keys, in training as in evaluation."""

    def __init__(self, config: ToMe):
        super().__init__()
        self.config = config

    def attention(self, block: int, run: Run) -> Mix:
        def mix(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
            run.keys = k
            return sized_attention(q, k, v, *rest)

        return mix

    def between(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        r, kept = self.config.r, run.replayed(tokens.x.device)
        if run.masked and not tokens.masked:
            tokens = with_all_live(tokens)
        if tokens.masked:
            tokens = merge_masked(tokens, run.keys, r, kept)
        elif kept is None and not tokens.ragged and tokens.packages is not None:
            tokens = merge_uniform(tokens, run.keys, r)
        else:
            tokens = merge_rows(tokens, run.keys, r, kept)
        run.pruned(block, None, tokens)
        return tokens


def build(config: ToMe, card) -> ToMeHooks:
    """The modules of `config`; nothing in them depends on the backbone."""
    return ToMeHooks(config)
