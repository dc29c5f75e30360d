"""EViT's stages: top-k by the class token's attention inside a block, with the fused token as a package."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.methods.evit.config import EViT
from foveate.methods.hooks import Hooks, Run
from foveate.methods.stages import Pool, Rule, prune_stage
from foveate.nn.tokens import Tokens


class EViTHooks(Hooks):
    """Nothing to learn: what is kept follows from the attention of the class token, in training as in evaluation."""

    def __init__(self, config: EViT):
        super().__init__()
        self.config = config

    def between(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        row = run.class_row(tokens)

        def score(patches: Tensor, pool: Pool) -> Tensor:
            share = row[:, tokens.patches] if patches.dim() == 3 else row.flatten()[tokens.places().flatten() >= 0]
            return torch.stack([share, 1 - share], -1)

        keep = self.config.keep[self.config.after.index(block)]
        return prune_stage(tokens, run, Rule(block, keep, "topk", self.config.fuse, noise=None), score)


def build(config: EViT, card) -> EViTHooks:
    """The modules of `config`; nothing in them depends on the backbone."""
    return EViTHooks(config)
