"""What flat backbones (ViT, Eva, LV-ViT) share behind their last block: final norm, pooling over live tokens, classifier."""

from __future__ import annotations

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from foveate.backbones.anatomy import pooling_weights, refuse, weighted_mean
from foveate.nn.attention import masked_attention
from foveate.nn.tokens import Tokens, prefix_rows


def check_pooling(model: nn.Module, name: str) -> None:
    """Raises FoveateError for a pooling whose meaning over a part of the tokens is not known."""
    pool = model.attn_pool
    if pool is not None and (type(pool) is not AttentionPoolLatent or pool.pos_embed is not None):
        refuse(name, f"attn_pool is a {type(pool).__name__}" + (" with positions" if type(pool) is AttentionPoolLatent else ""),
               "token, average or latent map pooling", "recreate the model with global_pool='avg' or 'token'")
    if pool is None and model.global_pool not in ("token", "avg"):
        refuse(name, f"global_pool={model.global_pool!r}", "token, avg or map pooling", "recreate the model with global_pool='avg' or 'token'")


def pooled_head(model: nn.Module, tokens: Tokens, include_prefix: bool) -> Tensor:
    """Logits [B, classes] of the tokens behind the last block; include_prefix: average and map pooling read prefix tokens too."""
    if not tokens.pruned:
        return model.forward_head(model.norm(tokens.x))
    if model.global_pool == "token" or getattr(model, "head_dist", None) is not None:
        return model.forward_head(model.norm(prefix_rows(tokens)))
    x, weights = pooling_weights(tokens.with_x(model.norm(tokens.x)), include_prefix)
    x = weighted_mean(x, weights) if model.attn_pool is None else latent_pool(model.attn_pool, x, weights)
    return model.head(model.head_drop(model.fc_norm(x)))


def classifier_logits(model: nn.Module, prefix: Tensor) -> tuple[Tensor, ...]:
    """The logits of the class token and, in distilled models, of the distillation token: normalised prefix rows [B, p, D]."""
    heads = [head for head in (model.head, getattr(model, "head_dist", None)) if head is not None]
    return tuple(head(model.head_drop(prefix[:, i])) for i, head in enumerate(heads))


def patch_features(norm: nn.Module, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Normalised patch features [B, N, D] of the masked or dense form and their decision weights [B, N]."""
    x = norm(tokens.x)[:, tokens.patches]
    return x, tokens.live[:, tokens.patches] if tokens.masked else torch.ones(x.shape[:2], device=x.device)


def latent_pool(pool: AttentionPoolLatent, x: Tensor, weights: Tensor) -> Tensor:
    """timm's AttentionPoolLatent over its own children, each token counting with its weight: x [B, n, D], weights [B, n]."""
    heads = (pool.num_heads, pool.head_dim)
    q = pool.q(pool.latent.expand(x.shape[0], -1, -1)).unflatten(-1, heads).transpose(1, 2)
    k, v = (t.transpose(1, 2) for t in pool.kv(x).unflatten(-1, (2, *heads)).unbind(2))
    keys = weights[:, None, None, :].expand(-1, 1, pool.latent_len, -1)
    x = masked_attention(pool.q_norm(q), pool.k_norm(k), v, keys, pool.scale).transpose(1, 2).flatten(2)
    x = pool.proj_drop(pool.proj(x))
    if pool.mlp is not None:
        x = x + pool.mlp(pool.norm(x))
    return x[:, 0] if pool.pool == "token" else x.mean(1) if pool.pool == "avg" else x
