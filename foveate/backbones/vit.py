"""The ViT family of timm: DeiT (distilled too), DeiT-III, AugReg, DINOv2, CLIP and SigLIP image towers."""

from __future__ import annotations

from typing import ClassVar

from timm.layers import Attention, PatchDropout
from timm.models import vision_transformer as timm_vit
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, refuse, residual_block
from foveate.backbones.pooling import check_pooling, classifier_logits, patch_features, pooled_head
from foveate.nn.attention import attend
from foveate.nn.tokens import Tokens, dense, prefix_rows

BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
MODEL = {"patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre", "blocks",
         "norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist"}
# Their tokens run natively in full; what a pruned or re-weighted token means in them is not known.
DENSE_ONLY = (timm_vit.ParallelScalingBlock, timm_vit.DiffParallelScalingBlock, timm_vit.ParallelThingsBlock)


def attention_rows(attn: nn.Module, x: Tensor, tokens: Tokens, mix) -> Tensor:
    """timm's Attention over its own children, for x [B, n, D] or ragged [T, D]."""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(-3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    z = attn.norm(mix(q, k, v, tokens, attn.scale, attn.fused_attn, dropout).flatten(-2))
    if attn.gate is not None:
        z = z * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(z))


class ViT(Anatomy):
    """VisionTransformer and VisionTransformerDistilled."""

    family = "vit"
    attend = staticmethod(attend)
    plain_block: ClassVar[type[nn.Module]] = timm_vit.Block
    children: ClassVar[set[str]] = MODEL

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) in (timm_vit.VisionTransformer, VisionTransformerDistilled)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)

    def check(self) -> None:
        name, model = self.card.name, self.model
        check_children(model, self.children, {"patch_embed", "blocks", "norm", "head"}, name, "model")
        for i, block in enumerate(self.blocks):
            path = f"blocks.{i}"
            if type(block) in DENSE_ONLY or type(block) is timm_vit.ResPostBlock:
                continue
            if type(block) is not self.plain_block:
                refuse(name, f"{path} is a {type(block).__module__}.{type(block).__name__}", "blocks of timm.models.vision_transformer")
            check_children(block, BLOCK, BLOCK, name, path)
            if type(block.attn) is Attention:
                check_children(block.attn, ATTENTION, ATTENTION - {"gate"}, name, f"{path}.attn")

    def check_attention(self) -> None:
        name = self.card.name
        for i, block in enumerate(self.blocks):
            if type(block) is not self.plain_block:
                refuse(name, f"blocks.{i} is a {type(block).__name__}", "the empty plan there; methods need timm's plain Block",
                       "use fv.Plan([]), or a backbone with plain blocks")
            if type(block.attn) is not Attention:
                refuse(name, f"blocks.{i}.attn is a {type(block.attn).__name__}, whose scores mean something else",
                       "the empty plan there; methods need timm's plain Attention", "use fv.Plan([]), or a backbone with plain attention")

    def check_prunable(self) -> None:
        name, model = self.card.name, self.model
        if isinstance(model.patch_drop, PatchDropout):
            refuse(name, "patch_drop_rate > 0", "models without patch dropout where a plan prunes tokens",
                   "create the model with patch_drop_rate=0: the plan already drops patches")
        check_pooling(model, name)

    def stem(self, images: Tensor) -> Tokens:
        model = self.model
        x = model.patch_embed(images)
        grid = tuple(x.shape[1:3]) if x.dim() == 4 else model.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        return dense(x, model.num_prefix_tokens, grid)

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.model.blocks[index - 1](tokens.x))

    def run(self, index: int, tokens: Tokens, mix, between=None) -> Tokens:
        block = self.model.blocks[index - 1]
        return residual_block(block, tokens, mix, attention_rows, between)

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return patch_features(self.model.norm, tokens)

    def heads(self, tokens: Tokens) -> tuple[Tensor, ...]:
        if getattr(self.model, "head_dist", None) is None:
            return (self.head(tokens),)
        return classifier_logits(self.model, self.model.norm(prefix_rows(tokens)))

    def head(self, tokens: Tokens) -> Tensor:
        return pooled_head(self.model, tokens, self.model.pool_include_prefix)
