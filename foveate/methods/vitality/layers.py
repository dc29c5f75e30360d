"""ViTALiTy's modules: the attention that stands in for softmax, and the distillation token."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.methods.hooks import Hooks, Run
from foveate.methods.vitality.config import ViTALiTy
from foveate.nn.attention import Mix
from foveate.nn.mixing import mixed
from foveate.nn.precision import at_least_float32
from foveate.nn.sparse import density, full_softmax, ranges, sparse_attention, sparse_helper, strong_mask
from foveate.nn.taylor import taylor_attention
from foveate.nn.tokens import PREFIX, Tokens, prefix_rows


MOMENTUM = 0.1
"""Weight of the newest batch in the running ranges of range="tensor"."""


class ViTALiTyHooks(Hooks):
    """Taylor attention, its sparse helper while training, and the distillation token of modes with "+kd".

    A backbone without a distillation token gets `dist_token` [1, 1, C], which holds its position too, and the classifier
    `head_dist`, which starts at zero so that a model that was never trained with it still ranks the classes as before.
    """

    def __init__(self, config: ViTALiTy, card):
        super().__init__()
        self.config = config
        if config.range == "tensor":
            self.register_buffer("running_ranges", torch.zeros(card.depth, 4))
        if config.adds_token(card):
            self.dist_token = nn.Parameter(torch.randn(1, 1, card.blocks[0].dim) * 0.02)
            self.head_dist = nn.Linear(card.blocks[-1].dim, card.num_classes)
            nn.init.zeros_(self.head_dist.weight), nn.init.zeros_(self.head_dist.bias)

    def enter(self, tokens: Tokens) -> Tokens:
        if not hasattr(self, "dist_token"):
            return tokens
        p = tokens.prefix
        extra = self.dist_token.to(tokens.x.dtype).expand(tokens.x.shape[0], -1, -1)  # a traced graph keeps shape, not len()
        x = torch.cat([tokens.x[:, :p], extra, tokens.x[:, p:]], 1)
        place = torch.cat([tokens.place[:p], tokens.place.new_full((1,), PREFIX), tokens.place[p:]])
        return replace(tokens, x=x, place=place, prefix=p + 1)

    def classify(self, tokens: Tokens, final_norm: Callable[[Tensor], Tensor]) -> Tensor | None:
        return self.head_dist(final_norm(prefix_rows(tokens)[:, -1])) if hasattr(self, "head_dist") else None

    def attention(self, block: int, run: Run) -> Mix:
        return partial(self._mix, block, run)

    def _mix(self, block: int, run: Run, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool = True,
             dropout: float = 0.0, weights: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The chosen attention among the live tokens of each image; the shapes are those of Hooks.attention.

        bias: LeViT's position scores. The low-rank part has no place for them (it never forms a score); the sparse one has.
        """
        kind = self.config.attention_kind
        lowrank = kind != "sparse"
        sparse = kind != "lowrank" and (kind != "vitality" or run.sample)

        def attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None) -> Tensor:
            z = taylor_attention(q, k, v, scale, weights) if lowrank else 0.0
            return z + self._sparse(block, run, (q, k, v), scale, weights, bias, dropout) if sparse else z

        return mixed(attention, q, k, v, tokens, weights, alike=not sparse)

    def _sparse(self, block: int, run: Run, qkv: tuple[Tensor, Tensor, Tensor], scale: float, weights: Tensor | None,
                bias: Tensor | None, dropout: float) -> Tensor:
        """Sanger's branch: the pairs that the 4-bit predictor calls strong, renormalised where they stand alone."""
        q, k, v = qkv
        mask = strong_mask(q, k, scale, self.config.threshold, weights, bias=bias, **self._ranges(block, run, q, k, weights))
        run.figures[f"density_block_{block}"] = density(mask, weights)
        scores = (at_least_float32(q) * scale) @ at_least_float32(k).transpose(-2, -1)
        attention = full_softmax(scores if bias is None else scores + bias, weights)
        keep = sparse_attention if self.config.attention_kind == "sparse" else sparse_helper
        return F.dropout(keep(attention, mask), dropout).to(v.dtype) @ v

    def _ranges(self, block: int, run: Run, q: Tensor, k: Tensor, weights: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Ranges of the predictor where they are the tensor's: a running mean while training, frozen in evaluation (semantics.md 11)."""
        if self.config.range == "image":
            return {}
        running = self.running_ranges[block - 1]
        own = weights if q.shape[-2] == k.shape[-2] else None
        seen = torch.stack([bound.flatten()[0] for t, w in ((q, own), (k, weights)) for bound in ranges(t, w, "tensor")]).to(running)
        # Not an if: what it would ask is data, which a traced graph and the meta device do not have.
        found = torch.where(running.any(), torch.lerp(running, seen, MOMENTUM) if run.sample else running, seen)
        if run.sample:
            with torch.no_grad():
                running.copy_(found)
        low_q, high_q, low_k, high_k = found
        return {"q_range": (low_q, high_q), "k_range": (low_k, high_k)}

    def metrics(self, run: Run) -> dict[str, Tensor]:
        return {name: figure for name, figure in run.figures.items() if name.startswith("density")}


def build(config: ViTALiTy, card) -> ViTALiTyHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return ViTALiTyHooks(config, card)
