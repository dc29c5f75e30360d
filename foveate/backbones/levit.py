"""LeViT: attention with learned score biases over a grid that subsampling attentions shrink (arXiv:2104.01136)."""

from __future__ import annotations

import torch
from timm.models import levit as timm_levit
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, refuse
from foveate.nn.attention import SKIP
from foveate.nn.tokens import Tokens, dense

MODEL = {"stem", "stages", "head", "head_dist"}
BLOCK = {"attn", "drop_path1", "mlp", "drop_path2"}
SUBSAMPLING = {"attn_downsample", "mlp", "drop_path"}
ATTENTION = {"qkv", "proj", "attention_biases"}
SUBSAMPLED = {"q", "kv", "proj", "attention_biases"}


def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool = False, dropout: float = 0.0,
           weights: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention over all tokens: q [B, n, H, d], k [B, m, H, d], v [B, m, H, e], bias [H, n, m] -> [B, n, H, e]."""
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * scale
    return ((scores if bias is None else scores + bias).softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def attention_rows(attn: nn.Module, x: Tensor, tokens: Tokens, mix) -> Tensor:
    """timm's LeViT Attention, or its AttentionDownsample, over its own children, for x [B, n, D]."""
    widths, heads = (attn.key_dim, attn.val_dim), (attn.num_heads, -1)
    if type(attn) is timm_levit.AttentionDownsample:
        q = attn.q(x).unflatten(-1, heads)
        k, v = attn.kv(x).unflatten(-1, heads).split(widths, -1)
    else:
        q, k, v = attn.qkv(x).unflatten(-1, heads).split((attn.key_dim, *widths), -1)
    return attn.proj(mix(q, k, v, tokens, attn.scale, False, 0.0, bias=_biases(attn)).flatten(-2))


def _biases(attn: nn.Module) -> Tensor:
    """Score biases [H, n, m]."""
    if _may_cache():
        return attn.get_attention_biases(attn.attention_biases.device)
    return attn.attention_biases[:, attn.attention_bias_idxs]


def _may_cache() -> bool:
    """Whether this pass may fill and read timm's cache of score biases: one that is part of a graph would go stale with it."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _forget_biases(attn: nn.Module, _=None) -> None:
    attn.attention_bias_cache = {}


class LeViT(Anatomy):
    """timm's Levit and LevitDistilled, whose blocks run with all their tokens.

    Blocks are numbered through: those of the first stage, then of each further stage the subsampling block that makes its grid, and its blocks.
    """

    family = "levit"
    resized_by = "img_size=... (a multiple of its stem's stride)"
    attend = staticmethod(attend)

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) in (timm_levit.Levit, timm_levit.LevitDistilled)

    @property
    def blocks(self) -> list[nn.Module]:
        opening = lambda stage: [] if isinstance(stage.downsample, nn.Identity) else [stage.downsample]
        return [block for stage in self.model.stages for block in (*opening(stage), *stage.blocks)]

    def check(self) -> None:
        name, model = self.card.name, self.model
        if model.use_conv:
            refuse(name, "linears that are convolutions (use_conv=True)", "LeViT with linears",
                   "use the model of the same size without conv in its name, such as levit_128s")
        check_children(model, MODEL, MODEL - {"head_dist"}, name, "model")
        if type(model.stem) not in (timm_levit.Stem8, timm_levit.Stem16):
            refuse(name, f"stem is a {type(model.stem).__name__}", "Stem16 or Stem8 of timm.models.levit")
        for s, stage in enumerate(model.stages):
            check_children(stage, {"downsample", "blocks"}, {"downsample", "blocks"}, name, f"stages.{s}")
            if s:
                self._check_block(stage.downsample, timm_levit.LevitDownsample, SUBSAMPLING, f"stages.{s}.downsample")
            for i, block in enumerate(stage.blocks):
                self._check_block(block, timm_levit.LevitBlock, BLOCK, f"stages.{s}.blocks.{i}")

    def _check_block(self, block: nn.Module, kind: type[nn.Module], children: set[str], path: str) -> None:
        name = self.card.name
        if type(block) is not kind:
            refuse(name, f"{path} is a {type(block).__module__}.{type(block).__name__}", f"{kind.__name__} of timm.models.levit")
        check_children(block, children, children, name, path)
        known = (timm_levit.Attention, ATTENTION) if kind is timm_levit.LevitBlock else (timm_levit.AttentionDownsample, SUBSAMPLED)
        attn = _attention(block)
        if type(attn) is not known[0]:
            refuse(name, f"the attention of {path} is a {type(attn).__module__}.{type(attn).__name__}", f"{known[0].__name__} of timm.models.levit")
        check_children(attn, known[1], known[1], name, f"the attention of {path}")
        # timm keeps the biases of an evaluated model in a cache, which weights that are loaded afterwards would not reach.
        _forget_biases(attn)
        if _forget_biases not in attn._load_state_dict_post_hooks.values():
            attn.register_load_state_dict_post_hook(_forget_biases)

    def check_prunable(self) -> None:
        self.card.check_tokens("a plan that prunes tokens")

    def stem(self, images: Tensor) -> Tokens:
        x = self.model.stem(images)
        return dense(x.flatten(2).transpose(1, 2), 0, tuple(x.shape[2:]))

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        block = self.blocks[index - 1]
        if _may_cache():
            return self._after(block, tokens, block(tokens.x))
        _forget_biases(_attention(block))
        x = block(tokens.x)
        _forget_biases(_attention(block))
        return self._after(block, tokens, x)

    def run(self, index: int, tokens: Tokens, mix) -> Tokens:
        block, x = self.blocks[index - 1], tokens.x
        if type(block) is timm_levit.LevitDownsample:
            self.card.check_skippable([index] if mix is SKIP else [])
            x = attention_rows(block.attn_downsample, x, tokens, mix)
            return self._after(block, tokens, x + block.drop_path(block.mlp(x)))
        if mix is not SKIP:
            x = x + block.drop_path1(attention_rows(block.attn, x, tokens, mix))
        return tokens.with_x(x + block.drop_path2(block.mlp(x)))

    def _after(self, block: nn.Module, tokens: Tokens, x: Tensor) -> Tokens:
        """`tokens` with x, on the grid that `block` leaves."""
        if type(block) is not timm_levit.LevitDownsample:
            return tokens.with_x(x)
        return dense(x, 0, tuple((side - 1) // block.attn_downsample.stride + 1 for side in tokens.grid))

    def final_norm(self, x: Tensor) -> Tensor:
        """The rows themselves: LeViT's last norm is a part of its classifiers."""
        return x

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return tokens.x, torch.ones(tokens.x.shape[:2], device=tokens.x.device)

    def heads(self, tokens: Tokens) -> tuple[Tensor, ...]:
        pooled = self.model.forward_head(tokens.x, pre_logits=True)
        return tuple(head(pooled) for head in (self.model.head, getattr(self.model, "head_dist", None)) if head is not None)

    def head(self, tokens: Tokens) -> Tensor:
        return self.model.forward_head(tokens.x)


def _attention(block: nn.Module) -> nn.Module:
    return block.attn_downsample if type(block) is timm_levit.LevitDownsample else block.attn
