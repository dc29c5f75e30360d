"""IRET from a dense DeiT: the model starts from the leading channels and heads of the dense one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from foveate.backbones.iret import IncrementalTransformer
from foveate.errors import FoveateError


@torch.no_grad()
def slice_into(model: IncrementalTransformer, dense: nn.Module) -> tuple[str, ...]:
    """Copies the weights of a dense DeiT into `model`, in place, as far as they have a counterpart there.

    Block i takes block i: the first heads, of each the first channels, and of norms and MLP the first channels. The channels that a
    DeiT's first embedding has beyond IRET's first width belong to the IRET layers, so class and distillation token and the
    position embedding are cut into `embed_dims[0]` channels and the pieces that the layers add. The patch embedding's
    kernel is summed over 2x2 pixels, because the coarse image is the mean of them; one of IRET's own patch size is taken as it is.
    Classifiers are copied where width and classes are equally many.
    A dense model without a distillation token gives its class token, with position and classifier, for both.
    What has no counterpart keeps its values: sampler, sub-band embeddings, and the linear of prefix_growth="projection".

    dense: timm's DeiT or AugReg ViT with a class token, of the same patch grid, at least as deep, as wide and with as many and as wide heads.
    Returns the names of the parameters that kept their values. Raises FoveateError for a model that does not fit.
    """
    _check(model, dense)
    found = _embeddings(model, dense)
    for number, (block, source) in enumerate(zip(model.blocks, dense.blocks)):
        found |= {f"blocks.{number}.{name}": value for name, value in _block(block, source).items()}
    found |= {f"norm.{part}": getattr(dense.norm, part)[: model.embed_dim] for part in ("weight", "bias")}
    for name in ("head", "head_dist"):
        source, target = getattr(dense, name, dense.head), getattr(model, name)
        if isinstance(source, nn.Linear) and isinstance(target, nn.Linear) and source.weight.shape == target.weight.shape:
            found |= {f"{name}.weight": source.weight, f"{name}.bias": source.bias}
    names = [name for name, _ in model.named_parameters()]
    for name in set(found).intersection(names):
        model.get_parameter(name).copy_(found[name])
    return tuple(name for name in names if name not in found)


def _embeddings(model: IncrementalTransformer, dense: nn.Module) -> dict[str, Tensor]:
    first, own = model.embed_dims[0], dense.num_prefix_tokens
    kernel, bias = dense.patch_embed.proj.weight[:first], dense.patch_embed.proj.bias[:first]
    if dense.patch_embed.patch_size != model.patch_embed.patch_size:
        kernel = F.avg_pool2d(kernel, 2, divisor_override=1)
    # The wavelet's LL band is twice the mean of 2x2 pixels.
    found = {"patch_embed.proj.weight": kernel / (2 if model.sampler.kind == "dwt" else 1), "patch_embed.proj.bias": bias}
    positions = torch.cat([dense.pos_embed[:, :1], dense.pos_embed[:, own - 1 : own], dense.pos_embed[:, own:]], 1)
    tokens = [dense.cls_token, getattr(dense, "dist_token", dense.cls_token)]
    found |= {"cls_token": tokens[0][..., :first], "dist_token": tokens[1][..., :first], "pos_embed": positions[..., :first]}
    for number, (layer, start, stop) in enumerate(zip(model.focus, model.embed_dims, model.embed_dims[1:])):
        found[f"focus.{number}.pos_embed"] = positions[:, model.num_prefix_tokens - layer.own:, start:stop]
        found[f"focus.{number}.prefix_embed"] = torch.cat(tokens, 1)[..., start:stop]
    return found


def _block(block: Block, source: Block) -> dict[str, Tensor]:
    attn, theirs = block.attn, source.attn
    dim, hidden, heads, width = attn.proj.out_features, block.mlp.fc1.out_features, attn.num_heads, attn.head_dim
    by_head = (theirs.num_heads, theirs.head_dim)
    found = {
        "attn.qkv.weight": theirs.qkv.weight.unflatten(0, (3, *by_head))[:, :heads, :width, :dim].flatten(0, 2),
        "attn.proj.weight": theirs.proj.weight[:dim].unflatten(1, by_head)[:, :heads, :width].flatten(1),
        "attn.proj.bias": theirs.proj.bias[:dim],
        "mlp.fc1.weight": source.mlp.fc1.weight[:hidden, :dim],
        "mlp.fc1.bias": source.mlp.fc1.bias[:hidden],
        "mlp.fc2.weight": source.mlp.fc2.weight[:dim, :hidden],
        "mlp.fc2.bias": source.mlp.fc2.bias[:dim],
    }
    if theirs.qkv.bias is not None:
        found["attn.qkv.bias"] = theirs.qkv.bias.unflatten(0, (3, *by_head))[:, :heads, :width].flatten()
    return found | {f"{norm}.{part}": getattr(getattr(source, norm), part)[:dim] for norm in ("norm1", "norm2") for part in ("weight", "bias")}


def _check(model: IncrementalTransformer, dense: nn.Module) -> None:
    if type(model) is not IncrementalTransformer:
        raise FoveateError(f"a {type(model).__name__} to be started from slices", "iret_small, iret_tiny, iret_nano and their kind",
                           "take one of them, or give the model its own weights")
    plain = type(dense) in (VisionTransformer, VisionTransformerDistilled) and type(dense.blocks[0]) is Block and dense.cls_token is not None
    if not plain or not isinstance(dense.blocks[0].ls1, nn.Identity) or dense.num_reg_tokens or not isinstance(dense.norm_pre, nn.Identity):
        raise FoveateError(f"a {type(dense).__name__} to slice into IRET", "DeiT and AugReg Vision Transformers of timm with a class token, "
                           "without registers, LayerScale and a norm before the blocks", "take such as deit_small_distilled_patch16_224")
    ours, theirs = _sizes(model, model.blocks[-1]), _sizes(dense, dense.blocks[0])
    if short := next((what for what in ours if theirs[what] < ours[what]), None):
        raise FoveateError(f"a dense model of {theirs[short]} {short} for an IRET of {ours[short]}", f"at least {ours[short]} {short}", "slice a larger model")
    own, other = model.patch_embed, dense.patch_embed
    patches = (own.patch_size, tuple(2 * side for side in own.patch_size))
    if other.grid_size != own.grid_size or other.patch_size not in patches or other.proj.in_channels != model.in_chans:
        form = lambda embed: f"{embed.grid_size} patches of {embed.patch_size} pixels and {embed.proj.in_channels} channels"
        raise FoveateError(f"a dense model of {form(other)} for an IRET of {form(own)}", f"the same patches, or patches of {patches[1]} pixels",
                           "create the dense model with img_size=..., patch_size=... and in_chans=...; timm resamples its weights")


def _sizes(model: nn.Module, block: Block) -> dict[str, int]:
    return {"blocks": len(model.blocks), "channels": model.embed_dim, "heads": block.attn.num_heads, "channels a head": block.attn.head_dim,
            "channels in its MLPs": block.mlp.fc1.out_features}
