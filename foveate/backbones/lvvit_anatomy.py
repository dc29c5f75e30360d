"""LV-ViT-S and -M: scaled residual branches, and a dense auxiliary head over the patch tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foveate.backbones.anatomy import pooling_weights
from foveate.backbones.lvvit import AUX_WEIGHT, LVViT, LVViTBlock
from foveate.backbones.vit import MODEL, ViT, attention_rows
from foveate.nn.attention import SKIP
from foveate.nn.tokens import Tokens, prefix_rows


class LVViTAnatomy(ViT):
    """foveate's own LVViT; what it does not say here it does as a Vision Transformer of timm."""

    family = "lvvit"
    plain_block = LVViTBlock
    children = MODEL | {"aux_head"}

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is LVViT

    def run(self, index: int, tokens: Tokens, mix, between=None) -> Tokens:
        block, x = self.model.blocks[index - 1], tokens.x
        if mix is not SKIP:
            x = x + block.drop_path1(block.ls1(attention_rows(block.attn, block.norm1(x), tokens, mix))) / block.skip_lam
        if between is not None:
            tokens = between(tokens.with_x(x))
            x = tokens.x
        return tokens.with_x(x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) / block.skip_lam)

    def head(self, tokens: Tokens) -> Tensor:
        """cls + 0.5 max over live patch tokens of the auxiliary head; package tokens are not asked (semantics.md 8)."""
        model = self.model
        if not tokens.pruned:
            x, own = tokens.x, model.num_prefix_tokens
            if tokens.prefix > own:  # the auxiliary head takes all that follows the class token for patches
                x = torch.cat([x[:, :own], x[:, tokens.patches]], 1)
            return model.forward_head(model.norm(x))
        logits = VisionTransformer.forward_head(model, model.norm(prefix_rows(tokens)))
        if model.num_classes == 0:
            return logits
        x, weights = pooling_weights(replace(tokens, package_weight=0.0), include_prefix=False)
        votes = model.aux_head(model.norm(x)).masked_fill(weights[..., None] <= 0, -torch.inf)
        return logits + AUX_WEIGHT * votes.amax(1)
