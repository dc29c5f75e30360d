"""From one Transformer block to its BlockCard."""

from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models import vision_transformer as timm_vit
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from torch import nn

from foveate.backbones.reader import Reader
from foveate.card import ATTENTION_BRANCH, BlockCard, Part

ATTENTIONS = (Attention, AttentionRope, DiffAttention, EvaAttention, WindowAttention)
PARALLEL = (timm_vit.ParallelScalingBlock, timm_vit.DiffParallelScalingBlock)


def block_card(reader: Reader, block: nn.Module, grid: tuple[int, int]) -> BlockCard:
    """The BlockCard of `block`, whose patch tokens stand on `grid`; raises FoveateError for an attention whose cost is not known."""
    if type(block) in PARALLEL:
        return _parallel_scaling(reader, block, grid)
    things = type(block) is timm_vit.ParallelThingsBlock
    attentions = [branch.attn for branch in block.attns] if things else [getattr(block, "attn", None)]
    mlps = [branch.mlp for branch in block.ffns] if things else [getattr(block, "mlp", None)]
    projections, outputs, layers = [], [], []
    for attention in attentions:
        if type(attention) not in ATTENTIONS:
            raise reader.refuse(f"a {type(block).__name__} with a {type(attention).__name__} as its attention")
        projections += _projections(reader, attention)
        outputs.append(reader.linear(attention.proj, "attn.proj"))
    for mlp in mlps:
        layers += [reader.linear(getattr(mlp, n), f"mlp.{n}") for n in ("fc1", "fc1_g", "fc1_x", "fc2") if hasattr(mlp, n)]
    value = outputs[0].inputs // attentions[0].num_heads
    # Differential attention makes two maps from each head's query and multiplies each with the whole value.
    maps = 2 if type(attentions[0]) is DiffAttention else 1
    heads = maps * attentions[0].num_heads * len(attentions)
    hidden = sum(layer.inputs for layer in layers if layer.name == "mlp.fc2")
    dim = outputs[0].outputs
    return BlockCard(dim, heads, value // maps, value, hidden, grid, tuple(projections), tuple(outputs), tuple(layers),
                     attention_params=attention_params(block))


def attention_params(block: nn.Module) -> int:
    """Parameters that `block` would lose with its attention branch."""
    return sum(p.numel() for name, p in block.named_parameters() if name.partition(".")[0] in ATTENTION_BRANCH)


def _projections(reader: Reader, attention: nn.Module) -> list[Part]:
    if getattr(attention, "qkv", None) is not None:
        parts = [reader.linear(attention.qkv, "attn.qkv")]
    else:
        parts = [reader.linear(getattr(attention, n), f"attn.qkv.{n}") for n in ("q_proj", "k_proj", "v_proj")]
    if getattr(attention, "gate", None) is not None:
        parts.append(reader.linear(attention.gate, "attn.gate"))
    return parts


def _parallel_scaling(reader: Reader, block: nn.Module, grid: tuple[int, int]) -> BlockCard:
    joint = reader.linear(block.in_proj, "in_proj")
    dim = joint.inputs
    hidden = joint.outputs - 3 * dim
    if getattr(block, "attn_out_proj", None) is not None:
        reader.linear(block.attn_out_proj, "attn_out_proj"), reader.linear(block.mlp_out_proj, "mlp_out_proj")
    else:
        reader.linear(block.out_proj, "out_proj")
    maps = 2 if type(block) is timm_vit.DiffParallelScalingBlock else 1
    value = dim // block.num_heads
    # Joint layers are counted as the attention's and the MLP's share of them.
    return BlockCard(
        dim, maps * block.num_heads, value // maps, value, hidden, grid,
        projections=(Part("attn.qkv", dim, 3 * dim),),
        outputs=(Part("attn.proj", dim, dim),),
        mlp=(Part("mlp.fc1", dim, hidden), Part("mlp.fc2", hidden, dim)),
    )
