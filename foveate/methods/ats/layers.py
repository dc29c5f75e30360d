"""ATS's stages: patches drawn by inverse transform sampling from what the class token attends to."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.methods.ats.config import ATS
from foveate.methods.hooks import Hooks, Run
from foveate.methods.stages import Pool, Rule, prune_stage
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens


def significance(rows: Tensor, v: Tensor) -> Tensor:
    """What each token brings to the class token, sum over heads of A_1j ||V_j||: rows [..., H], v [..., H, e] -> [...] (token scoring in ATS)."""
    return (rows * at_least_float32(v).norm(dim=-1)).sum(-1)


def sampled(weight: Tensor, samples: int) -> Tensor:
    """Which tokens inverse transform sampling draws: weight [B, m] >= 0, not all 0 -> [B, m] of zeros and ones (token sampling in ATS).

    The points are u_k = (2k - 1) / (2K), k = 1...K, on the cumulative distribution; a token is drawn by those on its own step.
    Up to a step that ends at c there are floor(K c + 1/2) of them.
    """
    share = weight.cumsum(1)
    points = (samples * share / share[:, -1:] + 0.5).floor()
    return (points > torch.cat([torch.zeros_like(points[:, :1]), points[:, :-1]], 1)).to(weight.dtype)


class ATSHooks(Hooks):
    """Nothing to learn: what is drawn follows from attention and values, in training as in evaluation."""

    def __init__(self, config: ATS):
        super().__init__()
        self.config = config

    def between(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        seen, slots = run.watched[-1], tokens.grid[0] * tokens.grid[1]
        weight, samples = seen.at(tokens, significance(seen.rows, seen.v)), self.config.samples(slots)

        def score(patches: Tensor, pool: Pool) -> Tensor:
            if patches.dim() == 3:
                there = weight[:, tokens.patches]
                keep = sampled(there * (tokens.live[:, tokens.patches] > 0) if tokens.masked else there, samples)
            else:
                # Every image draws from its own distribution: over the slots of its grid, those without a token are never drawn.
                place = tokens.places().flatten()
                slot = (tokens.image_of_row() * slots + place)[place >= 0]
                field = weight.new_zeros(tokens.images * slots).scatter(0, slot, weight.flatten()[place >= 0])
                keep = sampled(field.view(tokens.images, slots), samples).flatten()[slot]
            return torch.stack([keep, 1 - keep], -1)

        return prune_stage(tokens, run, Rule(block, None, "argmax", package=False, noise=None), score)


def build(config: ATS, card) -> ATSHooks:
    """The modules of `config`; nothing in them depends on the backbone."""
    return ATSHooks(config)
