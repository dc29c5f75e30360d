"""SPViT's modules: the multi-head token selector (section 4.1) and the stages that use it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.methods.hooks import Hooks, Run
from foveate.methods.spvit.config import SPViT
from foveate.methods.spvit.losses import ratio_loss
from foveate.methods.stages import Pool, Rule, prune_stage
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens


ANNEALED = 0.8
"""Share of training over which annealed noise fades."""


class HeadLinear(nn.Module):
    """One linear layer a head, with weights of its own: [H, ..., inputs] -> [H, ..., outputs]."""

    def __init__(self, heads: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-(inputs**-0.5), inputs**-0.5))
        self.bias = nn.Parameter(torch.zeros(heads, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])


class HeadNorm(nn.Module):
    """LayerNorm over a head's channels with a scale and shift of each head's own: [H, ..., d]."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(self.weight), *[1] * (x.dim() - 2), -1)
        return F.layer_norm(x, x.shape[-1:]) * self.weight.view(shape) + self.bias.view(shape)


class Selector(nn.Module):
    """The attention-based multi-head token selector (Eqs. 1-6 of SPViT).

    dim: channels C; heads: H, with d = C / H channels each. Every head has weights of its own, and local and global
    features share one MLP: that is what the parameter counts of SPViT's Table 5 force (29,145 for DeiT-S).
    Deviation: Eq. 4 averages with 1/C over a head of d channels; here it is the mean over those d.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        d = dim // heads
        self.heads = heads
        self.norm, self.feature = HeadNorm(heads, d), HeadLinear(heads, d, d // 2)
        widths = (2 * (d // 2), max(1, d // 2), max(1, d // 4))
        self.hidden1, self.hidden2 = HeadLinear(heads, *widths[:2]), HeadLinear(heads, *widths[1:])
        self.score = HeadLinear(heads, widths[2], 2)
        squeezed = max(1, heads // 2)
        self.squeeze, self.excite = nn.Linear(heads, squeezed), nn.Linear(squeezed, heads)

    def head_scores(self, x: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """Scores t_i [H, ..., 2] of every head (Eq. 3) and head weights a_i [..., H] (Eq. 5) for patches x [..., C]."""
        per_head = x.unflatten(-1, (self.heads, -1))
        x = per_head.movedim(-2, 0)
        local = F.gelu(self.feature(self.norm(x)))  # Eq. 1
        both = torch.cat([local, pool(local).expand_as(local)], -1)  # with Eq. 2
        t = at_least_float32(self.score(F.gelu(self.hidden2(F.gelu(self.hidden1(both)))))).softmax(-1)
        a = at_least_float32(self.excite(F.gelu(self.squeeze(per_head.mean(-1))))).sigmoid()
        return t, a

    def forward(self, x: Tensor, pool: Pool) -> Tensor:
        """Keep and drop probabilities T~ [..., 2] of patches x [..., C] (Eq. 6), in float32 or wider.

        pool: mean of features [H, ..., d/2] over the image's currently kept patches (Eq. 2).
        """
        t, a = self.head_scores(x, pool)
        a = a.movedim(-1, 0)[..., None]
        return (t * a).sum(0) / a.sum(0)


class SPViTHooks(Hooks):
    """The selectors of one plan; `selectors.3` stands after block 3."""

    def __init__(self, config: SPViT, card):
        super().__init__()
        self.config = config
        self.selectors = nn.ModuleDict({str(b): Selector(card.dim_after(b), card.heads_after(b)) for b in config.after})

    def after(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        if block not in self.config.after:
            return tokens
        keep = self.config.keep[self.config.after.index(block)]
        noise = max(0.0, 1 - run.progress / ANNEALED) if self.config.noise == "annealed" else 1.0
        rule = Rule(block, keep, self.config.select, self.config.package, noise=noise)
        return prune_stage(replace(tokens, package_weight=self.config.package_weight), run, rule, self.selectors[str(block)])

    def losses(self, run: Run) -> dict[str, Tensor]:
        return {"ratio": self.config.ratio_weight * ratio_loss(self._mean_keep(run), [s.keep for s in run.stages])}

    def metrics(self, run: Run) -> dict[str, Tensor]:
        return {f"keep_after_{s.after}": k.detach() for s, k in zip(run.stages, self._mean_keep(run))}

    def _mean_keep(self, run: Run) -> list[Tensor]:
        return [s.tokens.live[:, s.tokens.patches].mean() for s in run.stages]


def build(config: SPViT, card) -> SPViTHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return SPViTHooks(config, card)
