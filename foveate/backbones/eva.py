"""The Eva family of timm: EVA and EVA-02, DINOv3, Perception Encoder, RoPE-ViT."""

from __future__ import annotations

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models import eva as timm_eva
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, refuse
from foveate.backbones.pooling import check_pooling, patch_features, pooled_head
from foveate.nn.attention import SKIP, attend
from foveate.nn.tokens import Tokens, dense

BLOCK = {"norm1", "attn", "gamma_1", "drop_path1", "norm2", "mlp", "gamma_2", "drop_path2"}
ATTENTION = {"qkv", "q_proj", "k_proj", "v_proj", "q_bias", "v_bias", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
NEEDED = {"q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}
MODEL = {"patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "rope", "norm_pre", "blocks", "norm",
         "attn_pool", "fc_norm", "head_drop", "head"}


def rotary_rows(table: Tensor, place: Tensor) -> Tensor:
    """The rotary row of every token: its grid slot's, and the identity rotation (sin 0, cos 1) for prefix and package tokens.

    table: [slots, 2d], sines first, or [H, slots, 2d] where each head has its own. place: [...]. Returns [..., 1 or H, 2d].
    """
    table = (table if table.dim() == 3 else table[None]).transpose(0, 1)
    sines, cosines = torch.zeros_like(table[:1]).chunk(2, -1)
    return torch.cat([torch.cat([sines, cosines + 1], -1), table])[(place + 1).clamp_min(0)]


def attention_rows(attn: nn.Module, x: Tensor, tokens: Tokens, rope: Tensor | None, mix) -> Tensor:
    """timm's EvaAttention and AttentionRope over their own children, for x [B, n, D] or ragged [T, D]."""
    q, k, v = _projected(attn, x)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        rows = rotary_rows(rope, tokens.place)
        q, k = (apply_rot_embed_cat(t, rows, half=attn.rotate_half).type_as(v) for t in (q, k))
    if groups := getattr(attn, "num_kv_groups", 1) - 1:
        k, v = (t.repeat_interleave(groups + 1, dim=-2) for t in (k, v))
    dropout = attn.attn_drop.p if attn.training else 0.0
    z = attn.norm(mix(q, k, v, tokens, attn.scale, attn.fused_attn, dropout).flatten(-2))
    if attn.gate is not None:
        z = z * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(z))


def _projected(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.qkv is None:
        return tuple(linear(x).unflatten(-1, (-1, attn.head_dim)) for linear in (attn.q_proj, attn.k_proj, attn.v_proj))
    qkv = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    return qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(-3)


class Eva(Anatomy):
    """timm's Eva; blocks with norms behind their branches only run with all their tokens."""

    family = "eva"
    attend = staticmethod(attend)

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is timm_eva.Eva

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)

    def check(self) -> None:
        name, model = self.card.name, self.model
        check_children(model, MODEL, {"patch_embed", "blocks", "norm", "head"}, name, "model")
        for i, block in enumerate(self.blocks):
            path = f"blocks.{i}"
            if type(block) not in (timm_eva.EvaBlock, timm_eva.EvaBlockPostNorm):
                refuse(name, f"{path} is a {type(block).__module__}.{type(block).__name__}", "blocks of timm.models.eva")
            check_children(block, BLOCK, BLOCK - {"gamma_1", "gamma_2"}, name, path)
            if type(block.attn) not in (timm_eva.EvaAttention, AttentionRope):
                refuse(name, f"{path}.attn is a {type(block.attn).__module__}.{type(block.attn).__name__}", "EvaAttention or AttentionRope of timm")
            check_children(block.attn, ATTENTION, NEEDED, name, f"{path}.attn")

    def check_attention(self) -> None:
        name = self.card.name
        for i, block in enumerate(self.blocks):
            if type(block) is not timm_eva.EvaBlock:
                refuse(name, f"blocks.{i} is a {type(block).__name__}", "the empty plan there; methods need timm's plain EvaBlock",
                       "use fv.Plan([]), or a backbone with plain blocks")

    def check_prunable(self) -> None:
        name, model = self.card.name, self.model
        if model.patch_drop is not None:
            refuse(name, "patch_drop_rate > 0", "models without patch dropout where a plan prunes tokens",
                   "create the model with patch_drop_rate=0: the plan already drops patches")
        check_pooling(model, name)

    def stem(self, images: Tensor) -> Tokens:
        model = self.model
        x = model.patch_embed(images)
        grid = tuple(x.shape[1:3]) if x.dim() == 4 else model.patch_embed.dynamic_feat_size(images.shape[-2:])
        x, rope = model._pos_embed(x)
        return dense(model.norm_pre(x), model.num_prefix_tokens, grid, rope)

    def native(self, tokens: Tokens) -> bool:
        return tokens.rope is None or not tokens.pruned

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        qkv = self.model.blocks[index - 1].attn.qkv
        if qkv is not None and type(qkv) is not nn.Linear:
            # timm reads this linear's weight without calling it: a method's own linear would be passed over.
            return self.run(index, tokens, self.attend)
        return tokens.with_x(self.model.blocks[index - 1](tokens.x, rope=self._rope(index, tokens)))

    def run(self, index: int, tokens: Tokens, mix, between=None) -> Tokens:
        block, x = self.model.blocks[index - 1], tokens.x
        if mix is not SKIP:
            attention = attention_rows(block.attn, block.norm1(x), tokens, self._rope(index, tokens), mix)
            x = x + block.drop_path1(attention if block.gamma_1 is None else block.gamma_1 * attention)
        if between is not None:
            tokens = between(tokens.with_x(x))
            x = tokens.x
        mlp = block.mlp(block.norm2(x))
        return tokens.with_x(x + block.drop_path2(mlp if block.gamma_2 is None else block.gamma_2 * mlp))

    def _rope(self, index: int, tokens: Tokens) -> Tensor | None:
        """The rotary table of block `index`; mixed rotary embeddings have one for each block."""
        return tokens.rope[index - 1] if tokens.rope is not None and self.model.rope_mixed else tokens.rope

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return patch_features(self.model.norm, tokens)

    def head(self, tokens: Tokens) -> Tensor:
        # Eva hands all tokens to map pooling, and patches only to average pooling.
        return pooled_head(self.model, tokens, include_prefix=self.model.attn_pool is not None)
