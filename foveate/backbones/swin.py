"""Swin Transformer: attention in shifted windows, patch merging between stages (arXiv:2103.14030)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead
from timm.models import swin_transformer as timm_swin
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, pooling_weights, refuse, weighted_mean
from foveate.backbones.pooling import patch_features
from foveate.nn.attention import SKIP
from foveate.nn.coarsen import Coarsening, coarsen, stage_behind
from foveate.nn.tokens import Tokens, dense
from foveate.nn.windows import partition, window_attend, window_keys

MODEL = {"patch_embed", "layers", "norm", "head"}
BLOCK = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
ATTENTION = {"relative_position_bias_table", "qkv", "attn_drop", "proj", "proj_drop", "softmax"}


def attention_rows(block: nn.Module, x: Tensor, tokens: Tokens, mix) -> Tensor:
    """timm's windowed attention of `block` over its own children, for x [B, n, D] or ragged [T, D], any patches missing.

    Package tokens are keys of every window, at no position and unshifted; as queries they see only themselves.
    """
    attn = block.attn
    windows = partition(tokens.grid, block.window_size, block.shift_size, x.device)
    keys = window_keys(tokens, windows)
    qkv = attn.qkv(x)
    rows = qkv.reshape(-1, qkv.shape[-1])
    if windows.padded:
        # timm pads with zeros before the projection: what stands there afterwards is its bias.
        rows = torch.cat([rows, torch.zeros_like(rows[:1]) if attn.qkv.bias is None else attn.qkv.bias.to(rows.dtype)[None]])
    area, shape = windows.slots.shape[1], (*keys.rows.shape, 3, attn.num_heads, -1)
    q, k, v = rows.index_select(0, keys.rows.flatten()).view(shape).flatten(0, 1).unbind(2)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = mix(q[:, :area], k, v, tokens, attn.scale, attn.fused_attn, dropout,
                weights=keys.weights.flatten(0, 1), bias=_bias(block, tokens, keys.packages)).flatten(-2).flatten(0, 1)
    place = tokens.places().flatten()
    back = tokens.image_of_row() * windows.slots.numel() + windows.position[place.clamp_min(0)]
    own = qkv.unflatten(-1, (3, -1))[..., 2, :].reshape(-1, qkv.shape[-1] // 3)
    z = torch.where((place >= 0)[:, None], mixed.index_select(0, back), own).view(*x.shape[:-1], -1)
    return attn.proj_drop(attn.proj(z))


def _bias(block: nn.Module, tokens: Tokens, packages: int) -> Tensor:
    """Relative positions and shift mask, zero for package keys: [1 or B * windows, H, area, area + packages]."""
    bias, mask = block.attn._get_rel_pos_bias(), block.attn_mask
    if block.dynamic_mask:
        padded = [side + -side % window for side, window in zip(tokens.grid, block.window_size)]
        mask = block.get_attn_mask(bias.new_empty(1, *padded, 1))
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(tokens.images, 1, 1, 1)
    return F.pad(bias, (0, packages))


class Swin(Anatomy):
    """timm's SwinTransformer. Its `attend` takes windows of tokens, their weights and a bias besides q, k and v."""

    family = "swin"
    attend = staticmethod(window_attend)

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is timm_swin.SwinTransformer

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.model.layers for block in stage.blocks]

    def check(self) -> None:
        name, model = self.card.name, self.model
        check_children(model, MODEL, MODEL, name, "model")
        for s, stage in enumerate(model.layers):
            path = f"layers.{s}"
            if type(stage) is not timm_swin.SwinTransformerStage:
                refuse(name, f"{path} is a {type(stage).__name__}", "stages of timm.models.swin_transformer")
            check_children(stage, {"downsample", "blocks"}, {"downsample", "blocks"}, name, path)
            if type(stage.downsample) is not (timm_swin.PatchMerging if s else nn.Identity):
                refuse(name, f"{path}.downsample is a {type(stage.downsample).__name__}", "patch merging before every stage but the first")
            if s:
                check_children(stage.downsample, {"norm", "reduction"}, {"norm", "reduction"}, name, f"{path}.downsample")
            for i, block in enumerate(stage.blocks):
                if type(block) is not timm_swin.SwinTransformerBlock or type(block.attn) is not timm_swin.WindowAttention:
                    refuse(name, f"{path}.blocks.{i} is a {type(block).__module__}.{type(block).__name__}", "blocks of timm.models.swin_transformer")
                check_children(block, BLOCK, BLOCK, name, f"{path}.blocks.{i}")
                check_children(block.attn, ATTENTION, ATTENTION, name, f"{path}.blocks.{i}.attn")

    def check_prunable(self) -> None:
        head = self.model.head
        if type(head) is not ClassifierHead or head.global_pool.pool_type != "avg":
            what = f"global_pool={head.global_pool.pool_type!r}" if type(head) is ClassifierHead else f"head is a {type(head).__name__}"
            refuse(self.card.name, what, "average pooling", "recreate the model with global_pool='avg'")

    def stem(self, images: Tensor) -> Tokens:
        x = self.model.patch_embed(images)
        return dense(x.flatten(1, 2), 0, tuple(x.shape[1:3]))

    def native(self, tokens: Tokens) -> bool:
        return not tokens.pruned

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.blocks[index - 1](tokens.x.unflatten(1, tokens.grid)).flatten(1, 2))

    def run(self, index: int, tokens: Tokens, mix) -> Tokens:
        block, x = self.blocks[index - 1], tokens.x
        if mix is not SKIP:
            x = x + block.drop_path1(attention_rows(block, block.norm1(x), tokens, mix))
        return tokens.with_x(x + block.drop_path2(block.mlp(block.norm2(x))))

    def next_stage(self, index: int, tokens: Tokens) -> Tokens:
        number = stage_behind(index, [len(stage.blocks) for stage in self.model.layers])
        if number is None:
            return tokens
        merging = self.model.layers[number].downsample
        if not tokens.pruned:
            x = merging(tokens.x.unflatten(1, tokens.grid))
            return dense(x.flatten(1, 2), 0, tuple(x.shape[1:3]), tokens.rope)
        alone = lambda x: merging.reduction(merging.norm(torch.cat([x] * 4, -1)))
        rows, columns = tokens.grid
        return coarsen(tokens, Coarsening(merging, alone, alone, kernel=2, stride=2, pad=(0, columns % 2, 0, rows % 2)))

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return patch_features(self.model.norm, tokens)

    def head(self, tokens: Tokens) -> Tensor:
        model = self.model
        if not tokens.pruned:
            return model.forward_head(model.norm(tokens.x.unflatten(1, tokens.grid)))
        x, weights = pooling_weights(tokens.with_x(model.norm(tokens.x)), include_prefix=False)
        return model.head.fc(model.head.drop(weighted_mean(x, weights)))
