"""Random token pruning: the stages of SPViT with dice instead of selectors."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from foveate.methods.hooks import Hooks, Run
from foveate.methods.random.config import Random
from foveate.methods.stages import Pool, Rule, prune_stage
from foveate.nn.tokens import Tokens


class RandomHooks(Hooks):
    """Keeps exact counts of randomly chosen patches; dropped ones weigh the same in the package token.

    In training every image and step has other places. In evaluation the places are those of `seed`, the same for
    every image: a batch of one then equals a batch of many. `Trace.shuffled` gives every image places of its own.
    """

    def __init__(self, config: Random):
        super().__init__()
        self.config = config

    def after(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        if block not in self.config.after:
            return tokens
        tokens = replace(tokens, package_weight=self.config.package_weight)
        keep = self.config.keep[self.config.after.index(block)]

        def luck(x: Tensor, pool: Pool) -> Tensor:
            if run.sample:
                dice = torch.rand(x.shape[:-1], device=x.device)
            else:
                places = tokens.places()
                places = places[places >= 0] if x.dim() == 2 else places[:, tokens.patches]
                slots = tokens.grid[0] * tokens.grid[1]
                dice = torch.tensor(self._dice(slots), device=x.device)[places]
            return torch.stack([dice, 1 - dice], -1)

        return prune_stage(tokens, run, Rule(block, keep, "topk", self.config.package, weighted=False, noise=None), luck)

    def _dice(self, slots: int) -> list[float]:
        # Python's dice are numbers to an exported graph; torch's would be an operation of it, thrown anew at every call.
        dice = random.Random(self.config.seed)
        return [dice.random() for _ in range(slots)]


def build(config: Random, card) -> RandomHooks:
    """The modules of `config`; nothing in them depends on the backbone."""
    return RandomHooks(config)
