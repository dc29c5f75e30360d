"""SPViT's modules: the multi-head token selector (section 4.1) and the stages that use it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.methods.hooks import Hooks, Run, Stage
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
        return per_head(x, self.weight, self.bias)


def per_head(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [H, ..., inputs] times weight [H, inputs, outputs], plus bias [H, outputs] where there is one."""
    rows = x.flatten(1, -2)
    made = rows @ weight if bias is None else torch.baddbmm(bias[:, None], rows, weight)
    return made.unflatten(1, x.shape[1:-1])


class HeadNorm(nn.Module):
    """LayerNorm over each head's channels, with a scale and a shift of its own: [..., H d] -> [..., H d]."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        # Two dimensions: graph compilers have a fast kernel for this norm over rows, and take one of four apart.
        rows = x.reshape(-1, self.weight.shape[1])
        return F.layer_norm(rows, rows.shape[-1:]).reshape(x.shape) * self.weight.flatten() + self.bias.flatten()


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
        keep, a = self._head_keeps(x, pool)
        return torch.stack([keep, 1 - keep], -1), a

    def forward(self, x: Tensor, pool: Pool) -> Tensor:
        """Keep and drop probabilities T~ [..., 2] of patches x [..., C] (Eq. 6), in float32 or wider.

        pool: mean of features [H, ..., d/2] over the image's currently kept patches (Eq. 2).
        """
        keep, a = self._head_keeps(x, pool)
        a = a.movedim(-1, 0)
        keep = (keep * a).sum(0) / a.sum(0)
        return torch.stack([keep, 1 - keep], -1)

    def _head_keeps(self, x: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """Each head's keep probability [H, ...] and the head weights [..., H]: a softmax over two is a sigmoid of their difference."""
        local = F.gelu(self.feature(self.norm(x).unflatten(-1, (self.heads, -1)).movedim(-2, 0)))  # Eq. 1
        in_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        lead = (self._lead_in_graph if in_graph else self._lead)(local, pool(local))
        a = self.excite(F.gelu(self.squeeze(x.unflatten(-1, (self.heads, -1)).mean(-1))))
        return at_least_float32(lead).sigmoid(), at_least_float32(a).sigmoid()

    def _lead(self, local: Tensor, pooled: Tensor) -> Tensor:
        """By how much each head's keep score lies above its drop score: [H, ...]."""
        both = torch.cat([local, pooled.expand_as(local)], -1)  # with Eq. 2
        scores = self.score(F.gelu(self.hidden2(F.gelu(self.hidden1(both)))))
        return scores[..., 0] - scores[..., 1]

    def _lead_in_graph(self, local: Tensor, pooled: Tensor) -> Tensor:
        """The same with what a graph compiler folds: the concatenation and the second score took a third of a stage in OpenVINO.

        [local, global] W is local W_1 + global W_2, and the difference of two scores is a score of the weights' difference.
        """
        width, (weight, bias) = local.shape[-1], (self.hidden1.weight, self.hidden1.bias)
        hidden = per_head(local, weight[:, :width]) + per_head(pooled, weight[:, width:], bias)
        hidden = F.gelu(self.hidden2(F.gelu(hidden)))
        weight, bias = self.score.weight, self.score.bias
        return per_head(hidden, weight[..., :1] - weight[..., 1:], bias[:, :1] - bias[:, 1:])[..., 0]


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
        return {"ratio": self.config.ratio_weight * ratio_loss(self._mean_keep(run), [s.keep for s in _aiming(run)])}

    def metrics(self, run: Run) -> dict[str, Tensor]:
        return {f"keep_after_{s.after}": k.detach() for s, k in zip(_aiming(run), self._mean_keep(run))}

    def _mean_keep(self, run: Run) -> list[Tensor]:
        return [s.tokens.live[:, s.tokens.patches].mean() for s in _aiming(run)]


def _aiming(run: Run) -> list[Stage]:
    """The stages with a keep ratio to reach; other methods may have some without."""
    return [s for s in run.stages if s.keep is not None]


def build(config: SPViT, card) -> SPViTHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return SPViTHooks(config, card)
