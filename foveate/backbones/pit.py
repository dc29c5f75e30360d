"""PiT: Vision Transformer blocks in three stages with a pooling convolution between them (arXiv:2103.16302)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import pit as timm_pit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, refuse, residual_block
from foveate.backbones.pooling import classifier_logits, patch_features
from foveate.backbones.vit import ATTENTION, BLOCK, attention_rows
from foveate.nn.attention import attend
from foveate.nn.coarsen import Coarsening, coarsen, stage_behind
from foveate.nn.tokens import Tokens, dense, prefix_rows

MODEL = {"patch_embed", "pos_embed", "cls_token", "pos_drop", "transformers", "norm", "head_drop", "head", "head_dist"}


def constant_field(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What `conv` makes of a field that is x everywhere, away from the border: x [..., C] -> [..., C']."""
    field = x.reshape(-1, x.shape[-1], 1, 1).expand(-1, -1, *conv.kernel_size)
    return F.conv2d(field, conv.weight, conv.bias, groups=conv.groups).view(*x.shape[:-1], conv.out_channels)


class PiT(Anatomy):
    """timm's PoolingVisionTransformer, distilled or not."""

    family = "pit"
    attend = staticmethod(attend)

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is timm_pit.PoolingVisionTransformer

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.model.transformers for block in stage.blocks]

    def check(self) -> None:
        name, model = self.card.name, self.model
        check_children(model, MODEL, MODEL - {"head_dist"}, name, "model")
        for s, stage in enumerate(model.transformers):
            path = f"transformers.{s}"
            if type(stage) is not timm_pit.Transformer:
                refuse(name, f"{path} is a {type(stage).__name__}", "stages of timm.models.pit")
            check_children(stage, {"pool", "norm", "blocks"}, {"norm", "blocks"} | ({"pool"} if s else set()), name, path)
            if (stage.pool is None) != (s == 0):
                refuse(name, f"{path}.pool in the first stage", "a pooling before every stage but the first")
            if stage.pool is not None:
                self._check_pool(stage.pool, f"{path}.pool")
            for i, block in enumerate(stage.blocks):
                if type(block) is not Block or type(block.attn) is not Attention:
                    refuse(name, f"{path}.blocks.{i} is a {type(block).__module__}.{type(block).__name__}", "blocks of timm.models.vision_transformer")
                check_children(block, BLOCK, BLOCK, name, f"{path}.blocks.{i}")
                check_children(block.attn, ATTENTION, ATTENTION - {"gate"}, name, f"{path}.blocks.{i}.attn")

    def _check_pool(self, pool: nn.Module, path: str) -> None:
        name = self.card.name
        if type(pool) is not timm_pit.Pooling or type(pool.conv) is not nn.Conv2d:
            refuse(name, f"{path} is a {type(pool).__name__}", "timm's Pooling with a plain convolution")
        check_children(pool, {"conv", "fc"}, {"conv", "fc"}, name, path)
        conv = pool.conv
        square = all(len(set(v)) == 1 for v in (conv.kernel_size, conv.stride, conv.padding))
        if conv.padding_mode != "zeros" or conv.dilation != (1, 1) or not square:
            refuse(name, f"{path}.conv with {conv.extra_repr()}", "a square kernel without dilation, padded with zeros")

    def stem(self, images: Tensor) -> Tokens:
        model = self.model
        x = model.patch_embed(images)
        x = model.pos_drop(x + model.pos_embed)
        prefix = model.cls_token.expand(x.shape[0], -1, -1)
        return self._joined(0, x, prefix)

    def _joined(self, stage: int, x: Tensor, prefix: Tensor) -> Tokens:
        """Tokens that enter stage `stage` (from 0): patches x [B, D, rows, columns] behind prefix [B, p, D]."""
        grid = tuple(x.shape[2:])
        x = torch.cat([prefix, x.flatten(2).transpose(1, 2)], 1)
        return dense(self.model.transformers[stage].norm(x), prefix.shape[1], grid)

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.blocks[index - 1](tokens.x))

    def run(self, index: int, tokens: Tokens, mix, between=None) -> Tokens:
        block = self.blocks[index - 1]
        return residual_block(block, tokens, mix, attention_rows, between)

    def next_stage(self, index: int, tokens: Tokens) -> Tokens:
        number = stage_behind(index, [len(stage.blocks) for stage in self.model.transformers])
        if number is None:
            return tokens
        stage = self.model.transformers[number]
        pool, norm = stage.pool, stage.norm
        if not tokens.pruned:
            x = tokens.x[:, tokens.patches].transpose(1, 2).unflatten(2, tokens.grid)
            return self._joined(number, *pool(x, tokens.x[:, : tokens.prefix]))
        pad = pool.conv.padding[0]
        return coarsen(tokens, Coarsening(
            patches=lambda x: norm(pool.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)),
            package=lambda x: norm(constant_field(pool.conv, x)),
            prefix=lambda x: norm(pool.fc(x)),
            kernel=pool.conv.kernel_size[0], stride=pool.conv.stride[0], pad=(pad, pad, pad, pad)))

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Patches through the final norm, which PiT itself applies to its class tokens only."""
        return patch_features(self.model.norm, tokens)

    def heads(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return classifier_logits(self.model, self.model.norm(prefix_rows(tokens)))

    def head(self, tokens: Tokens) -> Tensor:
        return self.model.forward_head(self.model.norm(prefix_rows(tokens)))
